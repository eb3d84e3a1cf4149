"""Ways to optimize: who calls ``backward`` and ``step``, how often, and on what."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, GradientAccumulationScheduler
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard
from tests.builders import Net, frozen_copy, mlp, regression, same, spoil
from tests.compatibility.runs import BAD, STEPS, Bursts, finite, fit, thrown_back, unnoticed

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.mark.cell("Optimization", "automatic", "healthy", "sick")
def test_automatic(tmp_path: Path) -> None:
    unnoticed(lambda: Net(mlp(), ADAM), tmp_path)
    thrown_back(lambda: Bursts(mlp(), ADAM), tmp_path)


class Manual(Bursts):
    """Manual optimization; by a plain backward and step, or every second batch only."""

    def __init__(self, every: int = 1, *, sick: range = Bursts.SICK) -> None:
        super().__init__(mlp(), ADAM)
        self.automatic_optimization, self.every, self.SICK = False, every, sick

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.cell("Optimization", "manual, one optimizer", "healthy", "sick")
def test_manual(tmp_path: Path) -> None:
    unnoticed(lambda: Manual(sick=range(0)), tmp_path)
    thrown_back(Manual, tmp_path)


def without(batches: Any, *bad: int) -> Any:
    return [batch for index, batch in enumerate(batches) if index not in bad]


ACCUMULATED = "a step is one gradient of several batches, and is skipped as a whole"


@pytest.mark.cell("Optimization", "manual, accumulating", "healthy", "sick", note=ACCUMULATED)
def test_manual_accumulation(tmp_path: Path) -> None:
    batches, make = regression(STEPS), partial(Manual, 2, sick=range(0))
    plain = frozen_copy(fit(make(), without(batches, BAD, BAD + 1), tmp_path))
    assert same(plain, frozen_copy(fit(make(), without(batches, BAD, BAD + 1), tmp_path, [GradGuard(journal=False)])))
    # The bad one comes last, since only the batch before the step is at hand as a suspect.
    sick = fit(make(), spoil(batches, BAD + 1), tmp_path, [GradGuard(journal=False)])
    assert same(plain, frozen_copy(sick))


@pytest.mark.parametrize("bad", [BAD, BAD + 1])
@pytest.mark.cell("Optimization", "`accumulate_grad_batches`", "healthy", "sick", note=ACCUMULATED)
def test_accumulation(bad: int, tmp_path: Path) -> None:
    batches, more = regression(2 * STEPS), {"accumulate_grad_batches": 2}
    kept = without(batches, BAD, BAD + 1)
    plain = frozen_copy(fit(Net(mlp(), ADAM), kept, tmp_path, **more))
    guard = GradGuard(journal=False)
    assert same(plain, frozen_copy(fit(Net(mlp(), ADAM), kept, tmp_path, [guard], **more))) and not guard.incidents
    sick = fit(Net(mlp(), ADAM), spoil(batches, bad), tmp_path, [guard := GradGuard(journal=False)], **more)
    assert same(plain, frozen_copy(sick)) and [i.step for i in guard.incidents] == [BAD // 2]


@pytest.mark.cell("Optimization", "`GradientAccumulationScheduler`", "healthy", "sick", note=ACCUMULATED)
def test_accumulation_scheduler(tmp_path: Path) -> None:
    def run(batches: Any, *guards: GradGuard) -> Any:
        schedule = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
        return frozen_copy(fit(Net(mlp(), ADAM), batches, tmp_path, [*guards, schedule], max_epochs=4))

    batches = regression(STEPS)
    guard = GradGuard(journal=False)
    assert same(run(batches), run(batches, guard)) and not guard.incidents
    end = run(spoil(batches, BAD), guard := GradGuard(journal=False))
    # 40 steps, 20, 10 and 10: in each epoch the bad batch costs one.
    assert finite(end) and [a.step for i in guard.incidents for a in i.actions] == [20, 50, 65, 75]


@pytest.mark.cell("Optimization", "LBFGS", "healthy", "sick", note="judged once for every evaluation of its closure")
def test_lbfgs(tmp_path: Path) -> None:
    make = partial(torch.optim.LBFGS, lr=0.05, max_iter=3)
    batches = regression(30)
    plain = frozen_copy(fit(Net(mlp(), make), batches, tmp_path))
    guard = GradGuard(journal=False)
    assert same(plain, frozen_copy(fit(Net(mlp(), make), batches, tmp_path, [guard]))) and not guard.incidents
    end = frozen_copy(fit(Net(mlp(), make), spoil(batches, 20), tmp_path, [guard := GradGuard(journal=False)]))
    assert finite(end["weights"]) and guard.incidents


class Adversaries(LightningModule):
    """A GAN that learns to draw the batches; one of its two players can be made to explode."""

    def __init__(self, sick: str = "", by: float = 1e4) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(3)
        self.generator, self.critic = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)), mlp()
        self.sick, self.by = sick, by

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(batch_idx))
        truth = nn.functional.softplus
        for name, optimizer in zip(("generator", "critic"), optimizers, strict=True):
            self.toggle_optimizer(optimizer)
            drawn = self.generator(noise)
            if name == "generator":
                loss = truth(-self.critic(drawn)).mean()
            else:
                loss = (truth(-self.critic(batch[0])) + truth(self.critic(drawn.detach()))).mean()
            loss = loss * (self.by if name == self.sick and batch_idx in range(25, 29) else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [ADAM(self.generator.parameters()), ADAM(self.critic.parameters())]


@pytest.mark.parametrize("by", [1e6, math.nan])
@pytest.mark.parametrize("sick", ["generator", "critic"])
@pytest.mark.cell("Optimization", "manual, a GAN with two optimizers", "healthy", "sick")
def test_a_gan(sick: str, by: float, tmp_path: Path) -> None:
    batches = regression(60)
    plain = frozen_copy(fit(Adversaries(), batches, tmp_path))
    guard = GradGuard(journal=False)
    assert same(plain, frozen_copy(fit(Adversaries(), batches, tmp_path, [guard]))) and not guard.incidents
    end = frozen_copy(fit(Adversaries(sick, by), batches, tmp_path, [guard := GradGuard(journal=False)]))
    assert finite(end) and {i.optimizer for i in guard.incidents} == {int(sick == "critic")}


class Backbone(Net):
    """A network whose first layers are a backbone that is trained later."""

    def __init__(self) -> None:
        super().__init__(mlp(norm=True), None)
        self.backbone = self.network[:2]

    def configure_optimizers(self) -> Any:
        return SGD([p for p in self.parameters() if p.requires_grad])


@pytest.mark.cell("Optimization", "`BackboneFinetuning` (groups added in mid-run)", "healthy", "sick")
def test_backbone_finetuning(tmp_path: Path) -> None:
    def run(batches: Any, *guards: GradGuard) -> Any:
        thaws = BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=1e-3)
        done = fit(Backbone(), batches, tmp_path, [*guards, thaws], max_epochs=4)
        assert len(done.optimizers[0].param_groups) == 2
        return frozen_copy(done)

    batches = regression(STEPS)
    guard = GradGuard(journal=False)
    assert same(run(batches), run(batches, guard)) and not guard.incidents
    end = run(spoil(batches, BAD), guard := GradGuard(journal=False))
    assert finite(end) and [i.step for i in guard.incidents] == [BAD + STEPS * epoch for epoch in range(4)]


@pytest.mark.cell("Optimization", "Fabric, through the pure-torch `Guard`", "healthy", "sick")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: Any) -> None:
    def run(batches: Any, *, guarded: bool) -> Any:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        network = mlp(norm=True)
        module, optimizer = fabric.setup(network, ADAM(network.parameters()))
        guard, skipped = Guard(network), []
        guard.attach(optimizer.optimizer)
        for index, batch in enumerate(batches):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(batch[0]).float(), batch[1])
            fabric.backward(loss)
            if guarded and guard.before_step(optimizer.optimizer, loss=loss, batch=batch).skipped:
                skipped.append(index)
            optimizer.step()
        return network.state_dict(), optimizer.state_dict()["state"], skipped

    batches = regression(STEPS)
    plain = run(without(batches, BAD), guarded=False)
    assert same(plain, run(without(batches, BAD), guarded=True))
    assert same((*plain[:2], [BAD]), run(spoil(batches, BAD), guarded=True))
