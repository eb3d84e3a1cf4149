"""The axis of steps, which never goes back although the steps may, and its ticks.

The page's ``scale.js`` says the same of ticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .codes import Floats, Integers


@dataclass(frozen=True, slots=True)
class Axis:
    """The steps a run has done, in the order it did them.

    A step's place is ``step + offset``. The offset changes only where the run went back, so without a rollback the
    place *is* the step, and with one the repeated steps lie to the right of the first attempt instead of on top of it.

    Args:
        ticks: Tick of each window, rising, shape ``(n,)``.
        first: Place where each window begins, shape ``(n,)``.
        last: Place where it ends, exclusive: one past that of its last step, shape ``(n,)``.
        offsets: Offset of each window, shape ``(n,)``.
        wall_times: When each window was written, shape ``(n,)``.
    """

    ticks: Integers
    first: Floats
    last: Floats
    offsets: Floats
    wall_times: Floats

    @property
    def segments(self) -> list[dict[str, float]]:
        """The stretches between rollbacks: where each starts, its offset, and when it was first heard of."""
        if not len(self.ticks):
            return []
        starts = np.flatnonzero(np.diff(self.offsets, prepend=np.nan) != 0)
        return [
            {"start": float(self.first[i]), "offset": float(self.offsets[i]), "time": float(self.wall_times[i])}
            for i in starts
        ]

    def place(self, step: float, wall_time: float) -> float:
        """Return the place of ``step`` as it was done at ``wall_time``; after a rollback one step has several."""
        known = [s for s in self.segments if s["time"] <= wall_time] or self.segments[:1]
        # The event of a rollback is written in the segment it ends, whose successor may not have been heard of yet.
        holding = [s for s in known if s["start"] <= step + s["offset"]]
        return step + ((holding or known)[-1]["offset"] if known else 0.0)


def unroll(ticks: Integers, table: Floats, wall_times: Floats) -> Axis:
    """Lay windows side by side although their steps may go back.

    >>> table = np.zeros((4, 9)); table[:, 0] = [9, 19, 14, 24]; table[:, 1] = [0, 10, 5, 15]
    >>> axis = unroll(np.arange(4), table, np.zeros(4))
    >>> axis.last.tolist(), axis.offsets.tolist()
    ([10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 15.0, 15.0])
    """
    step, begin = table[:, 0], np.minimum(table[:, 1], table[:, 0])
    back = np.zeros(len(step))
    if len(step) > 1:
        fell = step[1:] < step[:-1]
        back[1:] = np.where(fell, step[:-1] + 1 - begin[1:], 0.0)
    offsets = np.cumsum(back)
    last = step + offsets + 1
    first = begin + offsets
    first[1:] = np.maximum(first[1:], last[:-1])
    return Axis(ticks, np.minimum(first, last), last, offsets, wall_times)


def step_ticks(segments: Sequence[dict[str, float]], start: float, end: float, width: float) -> list[tuple[float, int]]:
    """Return places and steps at round steps.

    Between rollbacks each stretch counts anew, so that a label is a step as the user knows it.

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
