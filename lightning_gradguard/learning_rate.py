"""The learning rate of an optimizer, as one number on the host."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor

from lightning_gradguard.arriving import Arriving


def largest_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest learning rate of the optimizer's groups.

    A group whose rate leaps is seen by it, and one that is frozen at 0 hides nothing. Without a group, or where an
    optimizer finds its rates by itself, it is 0.
    """
    return max((float(rate) for group in optimizer.param_groups if (rate := group.get("lr")) is not None), default=0.0)


def on_a_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a group's rate is a tensor that has to be waited for."""
    return any(_is_far(group.get("lr")) for group in optimizer.param_groups)


class LargestRate:
    """Read that rate before each step, from a device only where it was written to since it was read there.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._known = 0.0
        self._read: list[tuple[int, int]] = []
        self._sent: list[tuple[int, int]] = []
        self._coming: list[Arriving | float] = []

    def read(self) -> float:
        """Return the largest learning rate of the optimizer's groups; of one that is on its way, what was known."""
        far = self._far()
        if far and far in (self._read, self._sent):
            return self._known
        # From a device one wait a group, once for each time that a scheduler writes.
        self._read, self._sent, self._known = far, [], largest_rate(self._optimizer)
        self._coming = []
        return self._known

    def send(self) -> None:
        """Send on its way what a scheduler has told a device, and read what was sent at the last step.

        So a rate that is written to at each step is known one step late, and nothing is waited for.
        """
        if self._coming:
            self._known = max(one if isinstance(one, float) else float(one.read()) for one in self._coming)
            self._read, self._sent, self._coming = self._sent, [], []
        far = self._far()
        if not self._read or far == self._read:
            return
        rates = [rate for group in self._optimizer.param_groups if (rate := group.get("lr")) is not None]
        self._coming = [Arriving(rate) if _is_far(rate) else float(rate) for rate in rates]
        self._sent = far

    def _far(self) -> list[tuple[int, int]]:
        """Return which rates are on a device, and how often each was written to."""
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        return [(id(rate), rate._version) for rate in rates if _is_far(rate)]


def _is_far(rate: Any) -> TypeGuard[Tensor]:
    return isinstance(rate, Tensor) and not rate.is_cpu
