"""The last few values of something, and how many of them a statistic needs."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable

NORM_WINDOW = 128
"""Accepted steps remembered: long enough for a quantile, short enough to follow a decaying norm."""
RECENT = 9
"""Accepted steps that make up *now*; a median of nine shrugs off four outliers."""
FEW = 5
"""Accepted steps in which updates are measured against weights: the first ones tell whether the rate is too high."""
THIN_HISTORY = 32
"""Accepted steps below which the history of norms and losses is thin."""
ENOUGH = 16
"""Values from which their spread is worth something."""


class Sample:
    """The last few values of something, in their order and sorted.

    In arrays, since after a pass over the gradients each number of a list would be fetched from memory on its own.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values = array("d", values)[-NORM_WINDOW:]
        self._sorted = array("d", sorted(self.values))

    def push(self, value: float) -> None:
        """Add one, and forget the oldest where there are too many."""
        if len(self.values) == NORM_WINDOW:
            del self._sorted[bisect_left(self._sorted, self.values[0])]
            del self.values[0]
        self.values.append(value)
        insort(self._sorted, value)

    def quantile(self, q: float) -> float:
        """Return the ``q``-quantile; NaN of nothing."""
        return self._sorted[round(q * (len(self._sorted) - 1))] if self._sorted else math.nan

    @property
    def spread(self) -> float:
        """Robust standard deviation, 0.0 of fewer than two.

        The larger of the interquartile range and the upper decile, each scaled to a normal distribution
        (1.349 and 1.2816 sigma), so that a long right tail widens it.
        """
        if len(self._sorted) < 2:
            return 0.0
        box = (self.quantile(0.75) - self.quantile(0.25)) / 1.349
        return max(box, (self.quantile(0.9) - self.quantile(0.5)) / 1.2816)
