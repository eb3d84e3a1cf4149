"""Robust numbers of a few losses: where they begin, their level, their noise."""

from __future__ import annotations

import math
from array import array


def beginning(losses: list[float]) -> float:
    """Return the first loss, or the lower quartile of the first few if that is larger; NaN of nothing."""
    return max(losses[0], sorted(losses)[(len(losses) - 1) // 4]) if losses else math.nan


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
