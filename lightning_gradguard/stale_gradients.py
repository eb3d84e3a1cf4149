"""Gradients of the update before that are still there as the next backward pass begins, and are added up."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

LOOKS = 8
"""Backward passes at which it is looked, counted from the first that follows an update: code does not change later."""
TWICE = 2
"""Updates by gradients that held those of an update before, from which nobody has forgotten it only once."""
SMALLEST = 4
"""Smallest gradients that are looked at: one may be zero by itself."""


class StaleGradients:
    """Tell whether the gradients that an optimizer steps by hold those that it has stepped by before.

    Gradients that were used are to be cleared before the next backward pass adds to them. Another optimizer's backward
    pass may come first, so that only the last one before a step counts.
    """

    def __init__(self) -> None:
        self._used = self._stale = self._cleared = False
        self._looks = self._found = 0

    @property
    def piled_up(self) -> bool:
        """Whether nobody clears them: it has been seen more than once."""
        return self._found >= TWICE and not self._cleared

    def before_backward(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Return whether gradients are there that were stepped by already; called before each backward pass."""
        if not self._used:
            return False
        if self._looks >= LOOKS:
            return self._found >= TWICE
        self._looks += 1
        held = sorted((p for p in parameters if p.grad is not None), key=nn.Parameter.numel)
        self._stale = any(bool(p.grad.any()) for p in held[:SMALLEST] if p.grad is not None)
        self._used = self._stale
        return self._stale

    def cleared(self, *, done: bool) -> None:
        """Note whether they have been cleared here, once they were found."""
        self._cleared = done
        if done:
            self._found += 1
            self._used = self._stale = False

    def after_update(self) -> None:
        """Note that the gradients at hand have been stepped by."""
        self._found += self._stale
        self._used, self._stale = True, False
