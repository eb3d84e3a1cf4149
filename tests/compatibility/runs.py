"""The runs behind most cells: one healthy, one with a bad batch, one that is thrown back; each beside an unguarded
one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Policy
from tests.builders import Net, frozen_copy, loader, regression, same, spoil, trainer

Make = Callable[[], nn.Module]
STEPS, BAD = 40, 20


def fit(module: Any, batches: Any, root: Path, callbacks: Sequence[Any] = (), **options: Any) -> Trainer:
    """Train a module on ready-made batches."""
    torch.manual_seed(9)
    run = trainer(root, callbacks=list(callbacks), **options)
    run.fit(module, loader(batches))
    return run


def unnoticed(
    module: Callable[[], Any], root: Path, *, batches: Any = None, trace: bool = False, **options: Any
) -> None:
    """Assert that a healthy guarded run ends as the unguarded one, and so does one that meets a NaN batch besides.

    Args:
        module: Makes the LightningModule, the same every time.
        root: Directory of the runs.
        batches: The healthy batches.
        trace: Whether the bad batch may leave a trace, since the module counts its forward passes (spectral norm).
        options: Go to the Trainer.
    """
    every = regression(STEPS) if batches is None else batches
    without = every[:BAD] + every[BAD + 1 :]
    plain = frozen_copy(fit(module(), without, root, **options))
    guard = GradGuard(journal=False)
    assert same(plain, frozen_copy(fit(module(), without, root, [guard], **options)))
    assert guard.incidents == ()
    guard = GradGuard(journal=False)
    end = frozen_copy(fit(module(), spoil(every, BAD), root, [guard], **options))
    assert [i.culprit for i in guard.incidents] == ["batch"]
    assert finite(end) if trace else same(plain, end)


class Bursts(Net):
    """A module whose loss is a thousand times larger and more at some steps, though its batches are healthy."""

    SICK = range(25, 29)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1e4 if batch_idx in self.SICK else 1.0)


def thrown_back(module: Callable[[], Any], root: Path, *, batches: Any = None, **options: Any) -> GradGuard:
    """Assert that a run whose fresh batches explode too goes back with all of its state, and goes on.

    Args:
        module: Makes a :class:`Bursts`.
        root: Directory of the run.
        batches: The batches.
        options: Go to the Trainer.
    """
    every = regression(STEPS + 20) if batches is None else batches
    unguarded = fit(module(), every[:STEPS], root, **options)
    plain = frozen_copy(unguarded)
    guard = GradGuard(journal=False, policy=Policy(patience=2))
    run = fit(module(), every, root, [guard], **options)
    end = frozen_copy(run)
    done = {remedy for incident in guard.incidents for remedy in incident.remedies}
    assert "rollback" in done, done
    assert finite(end)
    # What an optimizer keeps must be what it would have made by itself.
    assert shape_of(end["optimizers"]) == shape_of(plain["optimizers"])
    assert [g["lr"] for g in run.optimizers[0].param_groups] == [g["lr"] for g in unguarded.optimizers[0].param_groups]
    return guard


def finite(state: Any) -> bool:
    """Tell whether all tensors of a nested state are finite."""
    if isinstance(state, dict):
        return all(map(finite, state.values()))
    if isinstance(state, (list, tuple)):
        return all(map(finite, state))
    return bool(state.to_dense().isfinite().all()) if isinstance(state, Tensor) else True


def shape_of(state: Any) -> Any:
    """Return kinds, shapes, dtypes and devices of a nested state, without its values."""
    if isinstance(state, dict):
        return {key: shape_of(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [shape_of(value) for value in state]
    return (state.shape, state.dtype, state.device) if isinstance(state, Tensor) else type(state)
