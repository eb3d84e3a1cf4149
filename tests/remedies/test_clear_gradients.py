"""A forgotten ``zero_grad`` is found, and made up for where the run suffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.remedies import ClearGradients
from tests.builders import context_for, loader, mlp, regression, same, trainer

STEPS = 300


class ByHand(LightningModule):
    """A loop of its own, which clears the gradients or does not; with two optimizers it forgets one."""

    def __init__(self, *, clears: bool, rate: float = 0.01, parts: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.clears, self.rate, self.parts = mlp(), clears, rate, parts
        self.losses: list[float] = []

    def training_step(self, batch: Any, _: int) -> None:
        x, y = batch
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        for optimizer in optimizers if self.clears else optimizers[1:]:
            optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.network(x), y)
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.losses.append(float(loss))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups = [list(self.network.parameters())] if self.parts == 1 else [[*self.network[:1].parameters()]]
        if self.parts == 2:
            groups.append([*self.network[1:].parameters()])
        return [torch.optim.SGD(group, lr=self.rate, momentum=0.9) for group in groups]


def trained(module: ByHand, root: Path, *callbacks: Any) -> ByHand:
    trainer(root, callbacks=list(callbacks), max_steps=-1, max_epochs=1).fit(module, loader(regression(STEPS)))
    return module


@pytest.mark.filterwarnings("ignore:GradGuard. gradients that an update")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_that_suffers_from_it_is_rescued(tmp_path: Path, parts: int) -> None:
    lost = trained(ByHand(clears=False, parts=parts), tmp_path)
    healthy = trained(ByHand(clears=True, parts=parts), tmp_path)
    guard = GradGuard()
    rescued = trained(ByHand(clears=False, parts=parts), tmp_path, guard)
    late = [sum(one.losses[-20:]) / 20 for one in (lost, healthy, rescued)]
    assert not late[0] < 3.0 * late[1] and late[2] < 3.0 * late[1]
    kept = [trial for incident in guard.incidents for trial in incident.trials if trial.outcome == "kept"]
    assert ("stale gradients", ("rollback", "clear")) in [(trial.cause, trial.treatment) for trial in kept]
    assert "zero_grad" in guard.guard.report()


def test_one_that_does_well_is_only_told(tmp_path: Path) -> None:
    alone = trained(ByHand(clears=False, rate=1e-5), tmp_path)
    with pytest.warns(RuntimeWarning, match="call zero_grad"):
        guarded = trained(ByHand(clears=False, rate=1e-5), tmp_path, GradGuard())
    assert same(dict(alone.state_dict()), dict(guarded.state_dict()))


def test_one_that_clears_them_hears_nothing(tmp_path: Path, recwarn: Any) -> None:
    guard = GradGuard()
    guarded = trained(ByHand(clears=True, rate=0.01), tmp_path, guard)
    alone = trained(ByHand(clears=True, rate=0.01), tmp_path)
    assert same(dict(alone.state_dict()), dict(guarded.state_dict())) and not guard.incidents
    assert not [w for w in recwarn if "zero_grad" in str(w.message)]


def test_it_clears_from_the_decision_on_until_it_is_taken_back_and_after_a_resume() -> None:
    module = mlp()
    remedy, parameters = ClearGradients(), list(module.parameters())
    module(torch.ones(2, 8)).sum().backward()
    assert not remedy.before_backward(parameters) and parameters[0].grad is not None
    assert remedy.apply(context_for(module)).applied
    assert not remedy.apply(context_for(module)).applied, "they are cleared already"
    resumed = ClearGradients()
    resumed.load_state_dict(remedy.state_dict())
    assert resumed.before_backward(parameters) and parameters[0].grad is None
    resumed.take_back(context_for(module))
    assert not resumed.before_backward(parameters)


@pytest.mark.filterwarnings("ignore:GradGuard. gradients that an update")
def test_without_it_the_rate_is_lowered_as_before() -> None:
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    guard = Guard(module, exclude=["clear"])
    guard.attach(optimizer)
    causes = set()
    for x, y in regression(STEPS):
        guard.before_backward()
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        report = guard.before_step(optimizer, loss=loss)
        optimizer.step()
        causes.add(report.decision.cause if report.decision else "")
    assert "stale gradients" not in causes and "learning rate" in causes
