"""Two ranks of which one computes on a machine that flips a bit, and two that leave a batch out together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gradguard import GradGuard, TrainingDiverged
from lightning_gradguard.evidence import Evidence
from tests.builders import Net, mlp, spoil
from tests.strategies.ddp_scenarios import ADAM, data, run

FLIPPED, EVERY, BAD = 21, 5, 12


class FlipsABit(Callback):
    """Flip the lowest bit of one weight on one rank, once."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx == FLIPPED:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1).view(torch.int32)[3] ^= 1


def flipped(mode: Literal["guard", "halt"], rank: int, root: Path) -> dict[str, Any]:
    guard, ended = GradGuard(mode=mode, compare_replicas=EVERY, journal=False), ""
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = run(Net(mlp(), ADAM), data(rank), root, guard, save=FlipsABit(1))
        except TrainingDiverged as error:
            ended = str(error)
    told = [str(w.message) for w in caught if "weights" in str(w.message)]
    return found | {"told": told, "ended": ended}


class WrongOnce(Net):
    """A module whose loss one rank computes wrongly once: a bit of its exponent flips."""

    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.calls += 1
        return loss * 2.0**64 if self.global_rank == 1 and self.calls == FLIPPED + 1 else loss


def wrong_once(rank: int, root: Path) -> dict[str, Any]:
    guard = GradGuard(evidence=Evidence(recompute=True), journal=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(WrongOnce(mlp(), ADAM), data(rank), root, guard)
    return found | {"told": [str(w.message) for w in caught if "computed the step" in str(w.message)]}


def healthy(every: int | None, rank: int, root: Path) -> dict[str, Any]:
    return run(Net(mlp(norm=True), ADAM), data(rank), root, GradGuard(compare_replicas=every))


def started_again(same: bool, rank: int, root: Path) -> dict[str, Any]:
    """Accuse a batch of rank 1, and start again, with the same data or with others."""
    place = root / f"again {same}"

    def once(batches: Any, **options: Any) -> dict[str, Any]:
        return run(Net(mlp(), ADAM), batches, place, GradGuard(**options))

    batches = spoil(data(rank), BAD) if rank == 1 else data(rank)
    first = once(batches)
    # Rank 0, which writes the journal, knows its own batch again.
    second = once(batches if same else data(rank)[::-1], skip_batches=place)
    return {"first": first, **second}


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "flipped": partial(flipped, "guard"),
    "flipped, halting": partial(flipped, "halt"),
    "wrong once": wrong_once,
    "compared": partial(healthy, 1),
    "not compared": partial(healthy, None),
    "left out": partial(started_again, True),
    "another order": partial(started_again, False),
}
