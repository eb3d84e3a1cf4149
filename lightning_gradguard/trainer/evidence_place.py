"""Where a run is, for its bundles of evidence: rank, epoch, precision, directory and newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradguard.evidence.collecting import Place
from lightning_gradguard.evidence.keeper import DIRECTORY, Keeper
from lightning_gradguard.trainer.checkpoints import saved_by
from lightning_gradguard.trainer.record import run_directory

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def place_evidence(trainer: Trainer, keeper: Keeper | None, run: str) -> None:
    """Tell who keeps the evidence where the run is; every process must call it."""
    if keeper is None:
        return
    given = str(trainer.log_dir or trainer.default_root_dir)
    keeper.directory = (run_directory(trainer, given, run) or Path.cwd()) / DIRECTORY
    keeper.place = lambda: Place(
        rank=trainer.global_rank,
        processes=trainer.world_size,
        precision=str(trainer.precision),
        epoch=trainer.current_epoch,
        checkpoint=next((path for one in trainer.checkpoint_callbacks for path in saved_by(one)), ""),
    )
