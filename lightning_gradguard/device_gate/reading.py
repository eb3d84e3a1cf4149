"""What the host knew of a step when it left it to the device, and what the device found and did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradguard.records import FloatArray


@dataclass(frozen=True, slots=True)
class Flight:
    """What the host knew of a step that it left to the device.

    Args:
        step: Its number.
        names: Names of the parameters that had a gradient.
        loss: Its loss, where that was on the host.
        rate: Its learning rate.
        batch_index: The number of its batch.
        scaled: Whether a GradScaler owns it.
        limit: Its largest norm that is nothing to look up for.
        update_ratio: How large against the weights an update can be that was let through though its norm was larger;
            None where none was.
    """

    step: int
    names: tuple[str, ...]
    loss: float | None
    rate: float | None
    batch_index: int | None
    scaled: bool = False
    limit: float = math.inf
    update_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the device found and did at one step.

    Args:
        norms: L2 norm of each gradient, shape ``(gradients,)``.
        coefficient: What the gradients were multiplied by: 1 untouched, 0 skipped.
        loss: The step's loss, or None where none was given.
        peaks: Largest absolute elements of the batch's tensors.
        flight: What the host knew of the step when it left it to the device.
    """

    norms: FloatArray
    coefficient: float
    loss: float | None
    peaks: tuple[float, ...]
    flight: Flight | None = None
