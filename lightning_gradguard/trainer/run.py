"""A run as the guard meets it and leaves it: processes, optimizers, and where the weights come from."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from lightning_gradguard.guard import Guard
from lightning_gradguard.remedies import SwapActivation
from lightning_gradguard.trainer.checkpoints import checkpoints_of
from lightning_gradguard.trainer.evidence_place import place_evidence
from lightning_gradguard.trainer.processes import collectives_of
from lightning_gradguard.trainer.refusal import warn_of_weights_only

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def begin(guard: Guard, trainer: Trainer, *, key: str, run: str) -> None:
    """Tell a guard of the run and its optimizers; every process must call it.

    Args:
        guard: The guard.
        trainer: Its Trainer.
        key: The key of the guard's state in a checkpoint.
        run: Id by which the journal knows the run.
    """
    guard.share(collectives_of(trainer))
    place_evidence(trainer, guard.evidence, run)
    # Weights that come from a checkpoint have been trained, whatever they look like.
    guard.resumed = trainer.ckpt_path is not None or trainer.global_step > 0
    guard.followers = averages_of(trainer)
    guard.checkpoints = checkpoints_of(trainer, key)
    guard.until_end(partial(remaining, trainer))
    tracks = [guard.attach(optimizer) for optimizer in trainer.optimizers]
    if any(isinstance(remedy, SwapActivation) for track in tracks for remedy in track.remedies):
        warn_of_weights_only(trainer)


def remaining(trainer: Trainer) -> float:
    """Return the share of a run that is left, from 0 to 1: by steps or epochs, whichever end comes first; else 1."""
    done, batches = [0.0], trainer.num_training_batches
    if trainer.max_steps > 0:
        done.append(trainer.global_step / trainer.max_steps)
    if (trainer.max_epochs or 0) > 0 and math.isfinite(batches) and batches > 0:
        of_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.completed / batches
        done.append((trainer.current_epoch + of_epoch) / trainer.max_epochs)  # type: ignore[operator]
    return max(1.0 - max(done), 0.0)


def averages_of(trainer: Trainer) -> tuple[nn.Module, ...]:
    """Return the averages that WeightAveraging and StochasticWeightAveraging keep to themselves."""
    found = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return tuple(average for average in found if isinstance(average, nn.Module))


def end(guard: Guard) -> None:
    """Close a guard, and let go of what is the Trainer's."""
    try:
        guard.close()
    finally:
        # The strategy's collectives end with the run, and cannot be pickled.
        guard.share()
        guard.until_end()
        guard.checkpoints = None
