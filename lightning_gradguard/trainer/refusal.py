"""What cannot be guarded is refused, and what may go wrong later is warned of, before training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_gradguard import twins
from lightning_gradguard.statistics.norms import can_sum_over_shards

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

REFUSED = {
    "DeepSpeedStrategy": "DeepSpeed's engine owns clipping and the update, and hands out gradients per micro-batch",
    "FSDPStrategy": "FSDP1 flattens parameters into shards, which hides the layers; use ModelParallelStrategy (FSDP2)",
}


def refuse(trainer: Trainer) -> None:
    """Raise MisconfigurationException under a strategy whose gradients cannot be seen."""
    kind = type(trainer.strategy)
    names = [base.__name__ for base in kind.__mro__]
    for name in names:
        if name in REFUSED:
            raise misconfigured(trainer, f"GradGuard cannot guard a run under {kind.__name__}: {REFUSED[name]}.")
    if "ModelParallelStrategy" in names and not can_sum_over_shards():
        raise misconfigured(
            trainer,
            f"GradGuard cannot guard a run under {kind.__name__} with torch {torch.__version__}: DTensor, over whose "
            "shards norms are summed, became public with torch 2.5.",
        )


def misconfigured(trainer: Trainer, message: str) -> Exception:
    """Return the MisconfigurationException of the Trainer's own package."""
    error: Exception = twins.part(trainer, "utilities.exceptions.MisconfigurationException")(message)
    return error


def warn_of_weights_only(trainer: Trainer) -> None:
    """Warn of checkpoints that do not tell which activations were swapped: loaded anew, they are another network."""
    if any(getattr(c, "save_weights_only", False) for c in trainer.checkpoint_callbacks):
        twins.part(trainer, "utilities.rank_zero_warn")(
            "GradGuard: a checkpoint with save_weights_only=True does not hold which activations SwapActivation has "
            "swapped; swap them by hand before its weights are used, or save whole checkpoints.",
            category=RuntimeWarning,
        )
