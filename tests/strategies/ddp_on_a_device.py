"""DDP with the CPU in a GPU's part: steps are left to it, and what one rank alone sees must not part the ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard, deferred_step
from lightning_gradguard.statistics.collectives import Collectives
from tests.builders import Net, mlp, spoil
from tests.strategies import ddp_scenarios as ddp
from tests.strategies.ddp_scenarios import ADAM, SGD, Batch, data, run, scaled

AT = 160
"""Step at which one rank's batch is bad: long after the first snapshots, in the middle of a calm run."""


def recorded(guard: GradGuard) -> dict[str, Any]:
    """Return what will hold the collectives of the guard in their order, and the steps that were left to the device."""
    # In the processes only: the test that reads the names of the scenarios treats its own CPU as ever.
    deferred_step.DEVICES = frozenset({"cpu", "cuda"})
    found: dict[str, Any] = {"collectives": [], "left": 0}
    inner, share, judge = guard.guard, guard.guard.share, guard.guard.before_step

    def told(kind: str, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def asking(value: Any) -> Any:
            found["collectives"].append((kind, len(value)) if kind == "mean" else (kind, 1))
            return ask(value)

        return asking

    def sharing(collectives: Collectives | None = None) -> None:
        if collectives is not None:
            mean, gather = told("mean", collectives.mean), told("gather", collectives.gather)
            collectives = dataclasses.replace(collectives, mean=mean, gather=gather)
        share(collectives)

    def judging(*args: Any, **kwargs: Any) -> Any:
        report = judge(*args, **kwargs)
        found["left"] += any(track.gate.waiting for track in inner._tracks)
        return report

    inner.share, inner.before_step = sharing, judging  # type: ignore[method-assign]
    return found


class Absolute(Net):
    """A module whose loss's gradient stays calm whatever the size of its input."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.l1_loss(self.network(batch[0]), batch[1])


def normalised() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))


def batches(rank: int, count: int = AT + 15) -> list[Batch]:
    """Return batches with noise, so that a calm run's losses stay where they are."""
    generator = torch.Generator().manual_seed(rank + 1)
    inputs = [torch.randn(64, 8, generator=generator) for _ in range(count)]
    return [(x, x[:, :1].tanh() + 0.05 * torch.randn(64, 1, generator=generator)) for x in inputs]


def train(make: Callable[[], Net], spoilt: Callable[[list[Batch]], list[Batch]], sick: int | None) -> Any:
    def scenario(rank: int, root: Path) -> dict[str, Any]:
        guard = GradGuard()
        found = recorded(guard)
        mine = batches(rank)
        return run(make(), spoilt(mine) if rank == sick else mine, root, guard) | found

    return scenario


def huge(index: int, by: float) -> Callable[[list[Batch]], list[Batch]]:
    return lambda made: [(x * by, y * by) if i == index else (x, y) for i, (x, y) in enumerate(made)]


def shifted(rank: int, root: Path) -> dict[str, Any]:
    """A loss that leaps on one rank by a number, which changes no gradient, again and again."""
    guard = GradGuard()
    found = recorded(guard)
    return run(ddp.Shifted(mlp(), SGD, rank=1, since=200, by=3.0), [*data(rank, 60)] * 6, root, guard) | found


def unused(rank: int, root: Path) -> dict[str, Any]:
    guard = GradGuard()
    found = recorded(guard)
    mine = data(rank, 80)
    mine = spoil(mine, 60) if rank == 0 else mine
    return run(ddp.Sometimes(mlp(), SGD, rank=1), mine, root, guard, find_unused_parameters=True) | found


ABSOLUTE = partial(Absolute, normalised(), partial(torch.optim.AdamW, lr=3e-3))
PLAIN = partial(Net, mlp(), partial(torch.optim.SGD, lr=1e-3))
SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "calm": lambda rank, root: train(lambda: Net(mlp(), ADAM), lambda made: made, None)(rank, root),
    "a batch that hides": train(ABSOLUTE, huge(AT, 1e3), 0),
    "a batch that hides, on rank 1": train(ABSOLUTE, huge(AT, 1e3), 1),
    "a large batch": train(PLAIN, lambda made: scaled(made, AT, 1e4), 0),
    "NaN": train(PLAIN, lambda made: spoil(made, AT), 1),
    "NaN in a row": train(PLAIN, lambda made: spoil(made, *range(AT, AT + 6)), 0),
    "a loss that leaps": shifted,
    "unused parameters": unused,
}
