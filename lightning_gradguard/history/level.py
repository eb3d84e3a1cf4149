"""Robust numbers of a few losses: where they begin, their level, their noise."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence

LEAP = 2.0
"""Times the level of earlier losses that all of the newest must have to be a leap."""
QUICK = 3
"""Losses in a row that a leap takes, which no single batch makes."""


def beginning(losses: list[float]) -> float:
    """Return the first loss, or the lower quartile of the first few if that is larger; NaN of nothing."""
    return max(losses[0], sorted(losses)[(len(losses) - 1) // 4]) if losses else math.nan


def leaps(newest: Sequence[float], earlier: Sequence[float]) -> bool:
    """Return whether all of the newest losses lie above all earlier ones, by their level or by their range."""
    if not newest or not earlier:
        return False
    middle = statistics.median(earlier)
    return min(newest) > max(earlier) + (LEAP - 1.0) * max(abs(middle), max(earlier) - min(earlier))


def noise(steps: list[float]) -> float:
    """Return a robust standard deviation from ``|differences|`` of successive values: median / (0.6745 sqrt 2)."""
    return sorted(steps)[len(steps) // 2] / 0.954 if steps else 0.0


def level(losses: array[float]) -> tuple[float, float]:
    """Return median and robust spread; NaN of nothing."""
    if not losses:
        return math.nan, math.nan
    ordered = sorted(losses)
    n = len(ordered) - 1
    return ordered[round(n / 2)], (ordered[round(0.75 * n)] - ordered[round(0.25 * n)]) / 1.349


def level_of(losses: Sequence[float]) -> float:
    """Return the median of losses; NaN of none."""
    return statistics.median(losses) if losses else math.nan
