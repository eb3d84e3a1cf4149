"""Ticks of a step axis that may go back, and of a logarithmic one; the page's ``scale.js`` says the same in its language."""

from __future__ import annotations

import math
from collections.abc import Sequence


def step_ticks(segments: Sequence[dict[str, float]], start: float, end: float, width: float) -> list[tuple[float, int]]:
    """Return places and steps at round steps; between rollbacks each stretch counts anew, so that a label is a step as the user knows it.

    >>> step_ticks([], 0.0, 1000.0, 440.0)
    [(0.0, 0), (500.0, 500)]
    """
    wish = (end - start) / max(2, width // 110)
    power = 10.0 ** math.floor(math.log10(max(wish, 1.0)))
    every = next((m * power for m in (1, 2, 5, 10) if m * power >= wish), 10 * power)
    bounds = list(segments) or [{"start": start, "offset": 0.0}]
    ticks: list[tuple[float, int]] = []
    for index, bound in enumerate(bounds):
        offset = bound["offset"]
        low = max(start, bound["start"])
        high = min(end, bounds[index + 1]["start"] if index + 1 < len(bounds) else end + 1.0)
        step = math.ceil((low - offset) / every) * every
        while step + offset < high:
            room = 50 + 4 * len(f"{step:,.0f}")
            if not ticks or (step + offset - ticks[-1][0]) * width / (end - start) > room:
                ticks.append((step + offset, int(step)))
            step += every
    return ticks


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return log10 of ticks: decades, thinned so that they do not crowd; in a narrow range also twos and fives.

    >>> log_ticks(-0.2, 3.1, 2)
    [0.0, 2.0]
    """
    decades = [float(power) for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    if len(decades) < 3:
        fine = [power + math.log10(m) for power in range(math.floor(low), math.floor(high) + 1) for m in (1, 2, 5)]
        return [at for at in fine if low <= at <= high]
    every = math.ceil(len(decades) / most)
    return [power for power in decades if power % every == 0]
