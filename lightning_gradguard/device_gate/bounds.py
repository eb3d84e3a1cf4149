"""The comparison that a device makes: a norm passes, is clipped, or has its step skipped."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the host knows of a norm before the step.

    Args:
        limit: Largest global norm that passes untouched.
        target: Norm to clip down to.
        gentle: Times the limit up to which a fused optimizer's step is clipped, not skipped.
    """

    limit: float
    target: float
    gentle: float

    def compared(self, total: Tensor, *, fused: bool) -> tuple[Tensor, Tensor]:
        """Return what gradients of this norm are to be multiplied by, and whether their step is skipped.

        Both are tensors of no dimension on the norm's device, which is not waited for.
        """
        limit = min(self.limit, sys.float_info.max)
        # Comparisons with NaN are false, so a NaN is skipped like an inf. Scalars are filled in, not put in
        # torch.where: that would make a tensor of them on the host first, and wait for its way to the device.
        skip = ~(total <= (min(limit * self.gentle, sys.float_info.max) if fused else limit))
        return (self.target / total).masked_fill(total <= limit, 1.0).masked_fill(skip, 0.0), skip


@dataclass(frozen=True, slots=True)
class Judged:
    """What a device has found and done, still there.

    Args:
        norms: L2 norm of each gradient, shape ``(gradients,)``.
        coefficient: What the gradients were multiplied by: 1 untouched, 0 skipped.
    """

    norms: Tensor
    coefficient: Tensor

    @property
    def made(self) -> Tensor:
        """Whether the step's update is made, as a bool tensor of no dimension."""
        return self.coefficient > 0.0
