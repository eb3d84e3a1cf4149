"""One run's windows on an axis that never goes back, and the statistics of its layers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import Axis, unroll
from .codes import CODE_OF, COUNT_OF, Codes, Counts, Floats, Integers
from .median import running_median
from .outliers import Outlier, outliers
from .wire import COLUMNS

COUNTS = ("clipped", "skipped", "overflows")
"""Columns that count steps since the run began."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The windows of one optimizer of one run.

    Args:
        axis: Their places.
        table: Their numbers, columns as in ``wire.COLUMNS``, shape ``(n, 23)``.
    """

    axis: Axis
    table: Floats

    def done(self, name: str) -> Floats:
        """Return how often in each window something counted (one of :data:`COUNTS`) was done; NaN in an old log."""
        since = self.table[:, COLUMNS.index(name)]
        before = np.append(0.0, since[:-1])
        for c in np.flatnonzero(np.diff(self.axis.offsets)) + 1:
            # A resumed run goes on with the count of the step that it was resumed from.
            kept = np.flatnonzero(self.table[:c, 0] < self.table[c, 1])
            before[c] = since[kept[-1]] if len(kept) else 0.0
        steps = since - before
        # Where the count falls all the same, a run was begun anew in the same folder.
        return np.where(steps < 0, since, steps)

    def total(self, name: str) -> int:
        """Return the same for the whole run."""
        return int(np.nansum(self.done(name)))

    @property
    def calm(self) -> npt.NDArray[np.bool_]:
        """Whether each window stayed finite and within the limit; without a limit there is nothing to exceed."""
        peak, limit = self.table[:, 2], self.table[:, 6]
        return np.isfinite(peak) & ~(peak > limit)

    @property
    def restless_since(self) -> int | None:
        """First step of the restless stretch that the run ends in, or None; two windows are no stretch yet."""
        calm = np.flatnonzero(self.calm)
        begin = int(calm[-1]) + 1 if len(calm) else 0
        return int(min(self.table[begin, :2])) if len(self.table) - begin > 2 else None


@dataclass(frozen=True, slots=True)
class Series:
    """All that one optimizer of one run has written, decoded.

    Args:
        names: Layer names in forward order.
        windows: The windows.
        layer_axis: The places of the layer statistics; a sampling loader may have kept other ticks of each tag.
        codes: log2 of the peak norms, shape ``(m, layers)``.
        nonfinite: Count of non-finite steps, at most 255, shape ``(m, layers)``.
        block_ends: Index after the last window of each block of the baseline, shape ``(b,)``.
        baseline: Running median of each layer, shape ``(b, layers)``; of a layer that has left its level for good, the
            level it has left.
        outliers: Those layers, the largest leap first.
    """

    names: tuple[str, ...]
    windows: Timeline
    layer_axis: Axis
    codes: Codes
    nonfinite: Counts
    block_ends: Integers
    baseline: Codes
    outliers: tuple[Outlier, ...] = ()


def lay_out(ticks: Integers, wall_times: Floats, table: Floats) -> Timeline:
    """Put window events together: ticks and wall times of shape ``(n,)``, numbers of shape ``(n, 23)``."""
    order = settle(ticks)
    return Timeline(unroll(ticks[order], table[order], wall_times[order]), table[order])


def assemble(
    names: Sequence[str], windows: Timeline, ticks: Integers, wall_times: Floats, halves: npt.NDArray[np.float16]
) -> Series:
    """Put layer events together with the windows, which know their steps.

    Args:
        names: Layer names.
        windows: The windows.
        ticks: Ticks of the layer events, shape ``(m,)``.
        wall_times: Their wall times.
        halves: Their payloads, shape ``(m, 2, layers)``.
    """
    order = settle(ticks)
    ticks = ticks[order]
    if len(windows.axis.ticks):
        axis = windows.axis
        at = np.clip(np.searchsorted(axis.ticks, ticks), 0, len(axis.ticks) - 1)
        layer_axis = Axis(ticks, axis.first[at], axis.last[at], axis.offsets[at], wall_times[order])
        calm = windows.calm[at]
    else:
        # Without a single window the ticks are all there is to put on the axis.
        place = ticks.astype(np.float64)
        layer_axis = Axis(ticks, place, place + 1, np.zeros(len(ticks)), wall_times[order])
        calm = np.ones(len(ticks), bool)

    bits = halves.view(np.uint16)
    if not np.array_equal(order, np.arange(len(bits))):
        bits = bits[order]
    codes, nonfinite = CODE_OF.take(bits[:, 0]), COUNT_OF.take(bits[:, 1])
    ends, baseline = running_median(codes, calm)
    left = outliers(codes, layer_axis)
    for one in left:
        # The median would take the leap for the new usual, and the map would cool down although nothing has healed.
        block = int(np.searchsorted(ends, np.searchsorted(layer_axis.first, one.place), side="right"))
        baseline[block:, one.layer] = baseline[max(block - 1, 0), one.layer]
    return Series(tuple(names), windows, layer_axis, codes, nonfinite, ends, baseline, left)


def settle(ticks: Integers) -> Integers:
    """Return indices in the order of the ticks; of a tick written twice (a resumed run) the later one counts."""
    order = np.argsort(ticks, kind="stable")
    ordered = ticks[order]
    keep = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    return np.asarray(order[keep], np.int64)
