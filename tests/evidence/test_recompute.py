"""A step that a machine computed wrongly is computed again, and the machine is named; nobody else ever is."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard, TrainingDiverged
from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.evidence import Evidence, read_bundle
from lightning_gradguard.evidence.accused import accused_batches
from lightning_gradguard.evidence.recompute import Recomputed
from lightning_gradguard.records import to_json
from lightning_gradguard_tensorboard.telling import advice
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer

BAD = 25


@pytest.mark.parametrize(
    ("then", "again", "odd"),
    [
        (1.0, (1.0, 1.0, 1.0), False),
        (1.0 + 1e-7, (1.0, 1.0, 1.0), False),
        (1.002, (1.0, 1.0, 1.0), True),
        (-3.0, (-1.0, -1.0, -1.0), True),
        (1.02, (1.0, 1.01, 1.01), False),
        (1.03, (1.0, 1.01, 1.01), True),
        (math.nan, (1.0, 1.1, 1.2), True),
        (math.nan, (math.nan, math.nan, math.nan), False),
        (math.inf, (math.nan, 1.0, 1.0), False),
        (1.0, (math.nan, math.nan, math.nan), True),
        (1.0, (math.nan, 1.0, 1.0), False),
    ],
)
def test_only_what_differs_beyond_the_spread_is_odd(then: float, again: tuple[float, ...], odd: bool) -> None:
    assert Recomputed("the loss", then, again).odd is odd


class Noisy(Net):
    """A module with dropout and running statistics, that logs, and whose loss is wrong once."""

    def __init__(self, by: float) -> None:
        torch.manual_seed(1)
        super().__init__(
            nn.Sequential(mlp(norm=True), nn.Dropout(0.2)), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)
        )
        self.by, self.calls = by, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.calls += 1
        self.log("loss", loss)
        return loss * (self.by if self.calls == BAD + 1 else 1.0)


class SpoilsAGradient(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == BAD:
            next(iter(pl_module.parameters())).grad[0] = math.nan  # type: ignore[index]


def run(path: Path, module: Net, data: Any, evidence: Evidence | None, *more: Callback) -> tuple[Any, list[str]]:
    fit = trainer(path, callbacks=[*more, GradGuard(evidence=evidence, journal=False)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(3)
        fit.fit(module, loader(data))
    return frozen_copy(fit), [str(w.message) for w in caught if "computed" in str(w.message)]


AGAIN = Evidence(recompute=True)


def test_a_loss_that_was_wrong_once_accuses_the_machine(tmp_path: Path) -> None:
    ended, [told] = run(tmp_path, Noisy(math.nan), regression(40), AGAIN)
    assert "rank 0 computed the step wrongly: the loss was nan, and computed 3 times again it is " in told
    assert "Suspect its machine" in told
    assert same(ended, run(tmp_path, Noisy(math.nan), regression(40), None)[0])


def test_a_gradient_that_was_wrong_once_does_too(tmp_path: Path) -> None:
    _, [told] = run(tmp_path, Noisy(1.0), regression(40), AGAIN, SpoilsAGradient())
    assert "the gradient norm was nan" in told and "the loss" not in told


def test_a_run_that_halts_then_says_that_it_was_the_machine(tmp_path: Path) -> None:
    guard = GradGuard(mode="halt", evidence=Evidence(recompute=True))
    with pytest.raises(TrainingDiverged) as raised, pytest.warns(RuntimeWarning, match="Suspect its machine"):
        trainer(tmp_path, callbacks=[guard]).fit(Noisy(math.nan), loader(regression(40)))
    assert "the machine of rank 0" in str(raised.value)
    assert "cause: a machine that computed the step wrongly" in str(raised.value)
    [incident] = read_journal(tmp_path / "gradguard.jsonl").incidents
    assert incident.blame[0].is_machine and not incident.blame[0].is_layer
    bundle = read_bundle(incident.bundle)
    assert bundle.suspects[0]["layer"] == "machine" and accused_batches(incident.bundle) == ()
    assert "take the machine of rank 0 out of the run" in advice(to_json(incident))


def test_a_guard_that_acts_blames_no_batch_for_it(tmp_path: Path) -> None:
    guard = GradGuard(evidence=AGAIN)
    with pytest.warns(RuntimeWarning, match="Suspect its machine"):
        trainer(tmp_path, callbacks=[guard]).fit(Noisy(math.nan), loader(regression(40)))
    [incident] = guard.incidents
    assert (incident.culprit, incident.remedies) == ("machine", ("skip",))
    assert incident.actions[0].decision.cause == "machine"


@pytest.mark.parametrize("times", [1, 100])
def test_what_comes_again_accuses_nobody(tmp_path: Path, times: int) -> None:
    data = (
        spoil(regression(40), BAD)
        if times == 1
        else [(x, y * (times if i == BAD else 1)) for i, (x, y) in enumerate(regression(40))]
    )
    ended, told = run(tmp_path, Noisy(1.0), data, AGAIN)
    assert told == [] and same(ended, run(tmp_path, Noisy(1.0), data, None)[0])


def test_a_loop_of_ones_own_names_its_loss(tmp_path: Path) -> None:
    module, made = mlp(), regression(40)
    again = Evidence(directory=tmp_path, recompute=lambda m, batch: nn.functional.mse_loss(m(batch[0]), batch[1]))
    guard = Guard(module, evidence=again)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

    def train() -> None:
        for index, batch in enumerate(made):
            guard.before_forward(batch, index, 0)
            loss = nn.functional.mse_loss(module(batch[0]), batch[1]) * (math.inf if index == BAD else 1.0)
            loss.backward()
            guard.before_step(optimizer, loss=loss, batch=batch, batch_index=index)
            optimizer.step()
            optimizer.zero_grad()
            guard.after_step()

    with pytest.warns(RuntimeWarning, match=r"the loss was inf, and computed 3 times again it is \d"):
        train()


class Once(Noisy):
    """A module that fails when it is asked a second time for the same batch."""

    def __init__(self, by: float) -> None:
        super().__init__(by)
        self.seen: set[int] = set()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx in self.seen:
            raise RuntimeError("out of turn")
        self.seen.add(batch_idx)
        return super().training_step(batch, batch_idx)


def test_a_module_that_cannot_be_asked_costs_one_warning(tmp_path: Path) -> None:
    _, [told] = run(tmp_path, Once(math.nan), regression(40), AGAIN)
    assert "could not be computed again: RuntimeError('out of turn')" in told


def test_the_argument_is_checked() -> None:
    with pytest.raises(ValueError, match="recompute must be True or False"):
        Evidence(recompute=3)  # type: ignore[arg-type]
