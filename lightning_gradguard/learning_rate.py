"""The learning rate of an optimizer, as one number on the host."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest learning rate of the optimizer's groups.

    A group whose rate leaps is seen by it, and one that is frozen at 0 hides nothing. Without a group, or where an
    optimizer finds its rates by itself, it is 0.
    """
    return max((float(rate) for group in optimizer.param_groups if (rate := group.get("lr")) is not None), default=0.0)


class LargestRate:
    """Read that rate before each step, from a device only where it was written to since it was read there.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._far: list[tuple[int, int]] = []
        self._known = 0.0

    def read(self) -> float:
        """Return the largest learning rate of the optimizer's groups."""
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        far = [(id(rate), rate._version) for rate in rates if isinstance(rate, Tensor) and not rate.is_cpu]
        if far and far == self._far:
            return self._known
        # From a device one wait a group, once for each time that a scheduler writes.
        self._far, self._known = far, largest_rate(self._optimizer)
        return self._known
