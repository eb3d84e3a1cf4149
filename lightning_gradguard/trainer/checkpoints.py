"""The checkpoints that a Trainer writes, as states to go back to where there is no memory for snapshots."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gradguard.snapshots import Checkpoints, Saved

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def checkpoints_of(trainer: Trainer, state_key: str) -> Checkpoints:
    """Return the checkpoints of a Trainer, in which the guard's own state has a key."""
    return Checkpoints(partial(_newest, trainer), partial(_opened, state_key))


def saved_by(checkpoints: Any) -> list[str]:
    """Return the checkpoints that a ModelCheckpoint has written last, the newest first."""
    names = ("_last_checkpoint_saved", "last_model_path", "best_model_path")
    return list(dict.fromkeys(str(path) for name in names if (path := getattr(checkpoints, name, ""))))


def _newest(trainer: Trainer) -> str:
    """Return the path of the newest that checkpoint callbacks have written, or of the one that the run began with."""
    written = {path for one in trainer.checkpoint_callbacks for path in saved_by(one)}
    files = [Path(path) for path in written if Path(path).is_file()]
    return str(max(files, key=lambda file: file.stat().st_mtime_ns)) if files else str(trainer.ckpt_path or "")


def _opened(state_key: str, path: str) -> Saved:
    """Return what a checkpoint holds, read from the disk only as it is used."""
    # It is this very run's, which the Trainer itself would load in the same way.
    found = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return Saved(found["state_dict"], found["optimizer_states"], found["callbacks"][state_key])
