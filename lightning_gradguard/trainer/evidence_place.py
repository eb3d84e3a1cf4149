"""Where a run is, for its bundles of evidence: rank, epoch, precision, directory and newest checkpoint."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_gradguard.evidence.collecting import Place
from lightning_gradguard.evidence.keeper import DIRECTORY, Keeper
from lightning_gradguard.trainer.checkpoints import saved_by
from lightning_gradguard.trainer.record import run_directory

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def place_evidence(trainer: Trainer, keeper: Keeper | None, run: str) -> None:
    """Tell who keeps the evidence where the run is, and how it computes; every process must call it."""
    if keeper is None:
        return
    given = str(trainer.log_dir or trainer.default_root_dir)
    keeper.directory = (run_directory(trainer, given, run) or Path.cwd()) / DIRECTORY
    module = trainer.lightning_module
    keeper.compute = partial(own_step, trainer, module) if module.automatic_optimization else None
    keeper.place = lambda: Place(
        rank=trainer.global_rank,
        processes=trainer.world_size,
        precision=str(trainer.precision),
        epoch=trainer.current_epoch,
        checkpoint=next((path for one in trainer.checkpoint_callbacks for path in saved_by(one)), ""),
    )


def own_step(trainer: Trainer, module: LightningModule, batch: Any, batch_index: int | None) -> Tensor:
    """Return the loss of a module's own ``training_step``, with nothing logged."""
    with trainer.precision_plugin.train_step_context(), _silent(module):
        several = len(inspect.signature(module.training_step).parameters) > 1
        found = module.training_step(batch, batch_index or 0) if several else module.training_step(batch)
    loss = found["loss"] if isinstance(found, Mapping) else found
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step returned {type(loss).__name__}, and no loss")
    return loss


@contextlib.contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Let ``log`` and ``log_dict`` of a module do nothing."""
    silenced = ("log", "log_dict")
    for name in silenced:
        object.__setattr__(module, name, _nothing)
    try:
        yield
    finally:
        for name in silenced:
            object.__delattr__(module, name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a logger."""
