"""What a training loop tells of a step besides its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class StepInputs(NamedTuple):
    """Loss, batch and scaler of one step. A tuple, since one is made at every step and a frozen dataclass costs more.

    Args:
        loss: The loss of the step, or None.
        batch: The batch, or None.
        batch_index: Its number, or None.
        step: The trainer's number of the step; None where the guard counts.
        scaler: The GradScaler that owns the step, or None.
    """

    loss: Tensor | float | None = None
    batch: Any = None
    batch_index: int | None = None
    step: int | None = None
    scaler: Any = None
