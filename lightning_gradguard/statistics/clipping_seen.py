"""Notice gradients that were clipped before they were measured: every norm then sits at the same bound."""

from __future__ import annotations

import math

STEPS = 20
"""Steps in a row that must sit there: where a bound does not clip all the time, some of so many are below it."""
CLOSE = 1e-4
"""Relative distance from the bound: clipping divides by the norm plus 1e-6."""


class ClippingSeen:
    """Count the steps in a row whose norm is the same number of at most two digits, as bounds are: 1, 0.5, 0.25."""

    def __init__(self) -> None:
        self._bound, self._count = 0.0, 0

    def add(self, norm: float) -> float | None:
        """Return the bound, once enough steps in a row sit at it.

        >>> seen = ClippingSeen()
        >>> [seen.add(0.9999995) for _ in range(STEPS)][-1]
        1.0
        """
        bound = float(f"{norm:.1e}") if math.isfinite(norm) else 0.0
        if bound == 0.0 or abs(norm - bound) > CLOSE * bound:
            self._count = 0
            return None
        self._count = self._count + 1 if bound == self._bound else 1
        self._bound = bound
        return bound if self._count == STEPS else None
