"""One run's windows on an axis that never goes back, thinned to the width of a screen.

Layer statistics are kept as 16-bit *codes*, :data:`CODES` to a doubling. That is the resolution of the half floats they
arrive in; a maximum over them is a vector instruction, over half floats it is not; and the page draws them as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .wire import COLUMNS, ZERO

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int16]
Halves = npt.NDArray[np.float16]
Counts = npt.NDArray[np.uint8]

CODES = 128
"""Codes per doubling. A half float between 8 and 16 has steps of 1/128."""
COUNTS = ("clipped", "skipped", "overflows")
"""Columns that count steps since the run began."""
MISSING = -32768
"""The code of "nothing measured"."""
ZERO_CODE = int(ZERO * CODES)

# The running median is taken over blocks of windows, so that its cost does not grow with the run.
_BLOCKS = 400
_SAMPLES_PER_BLOCK = 8


def encode(log2: npt.NDArray[np.floating]) -> Codes:
    """Turn log2 values into codes; NaN becomes :data:`MISSING`.

    >>> encode(np.array([0.0, 1.5, np.nan])).tolist()
    [0, 192, -32768]
    """
    with np.errstate(invalid="ignore"):
        scaled = np.rint(np.asarray(log2, np.float32) * np.float32(CODES))
    return np.where(np.isnan(scaled), np.float32(MISSING), np.clip(scaled, -32767, 32767)).astype(np.int16)


# There are only 65,536 half floats: looking codes up is ten times faster than computing them for 20 million values.
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
_CODE_OF = encode(_HALVES)
_COUNT_OF = np.clip(np.nan_to_num(_HALVES, nan=1.0, posinf=255.0), 0, 255).astype(np.uint8)


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


@dataclass(frozen=True, slots=True)
class Timeline:
    """The windows of one optimizer of one run.

    Args:
        axis: Their places.
        table: Their numbers, columns as in ``wire.COLUMNS``, shape ``(n, 19)``.
    """

    axis: Axis
    table: Floats

    def done(self, name: str) -> Floats:
        """Return how often in each window something counted (one of :data:`COUNTS`) was done; NaN in an old log."""
        since = self.table[:, COLUMNS.index(name)]
        steps = np.diff(since, prepend=0.0)
        # Where the count falls, a run was begun anew in the same folder.
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
        baseline: Running median of each layer, shape ``(b, layers)``.
    """

    names: tuple[str, ...]
    windows: Timeline
    layer_axis: Axis
    codes: Codes
    nonfinite: Counts
    block_ends: Integers
    baseline: Codes


def running_median(codes: Codes, calm: npt.NDArray[np.bool_]) -> tuple[Integers, Codes]:
    """Return each layer's median over the past twelfth of the run, so that warm-up and slow decay do not tint the map.

    Windows that left the band do not vote: an incident must not become its own yardstick. Nor do zeros and missing
    values. Where nothing votes, the last median known stands. The first blocks, with no past, are judged by each other.

    Args:
        codes: Shape ``(n, layers)``.
        calm: Whether each window may vote, shape ``(n,)``.

    Returns:
        The end index of each block, shape ``(b,)``, and the medians, shape ``(b, layers)``.
    """
    n, layers = codes.shape
    blocks = min(n, _BLOCKS)
    ends = (np.arange(1, blocks + 1) * n) // max(blocks, 1)
    if not n:
        return ends, np.zeros((0, layers), np.int16)
    starts = np.concatenate([[0], ends[:-1]])
    pick = starts[:, None] + (np.arange(_SAMPLES_PER_BLOCK) * (ends - starts)[:, None]) // _SAMPLES_PER_BLOCK
    per_block = _median(np.where(calm[pick][..., None], codes[pick], np.int16(MISSING)))
    reach = min(max(blocks // 12, 9), blocks)
    head = min(reach // 2 + 1, blocks)
    baseline = np.empty((blocks, layers), np.int16)
    # Block i is judged by the `reach` blocks before it; the first ones by each other.
    for block in range(blocks):
        past = slice(0, head) if block < head else slice(max(0, block - reach), block)
        now = _median(per_block[None, past])[0] if block == 0 or block >= head else baseline[0]
        baseline[block] = np.where((now == MISSING) & (block > 0), baseline[block - 1], now)
    unknown = baseline == MISSING
    first_known = np.take_along_axis(baseline, np.argmin(unknown, axis=0)[None], axis=0)
    return ends, np.where(unknown, first_known, baseline).astype(np.int16)


def _median(codes: Codes) -> Codes:
    """Return the lower median along axis 1 of what votes; :data:`MISSING` where nothing does."""
    silent = codes <= ZERO_CODE
    ordered = np.sort(np.where(silent, np.int16(32767), codes), axis=1)
    votes = codes.shape[1] - silent.sum(axis=1, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(votes - 1, 0) // 2, axis=1)
    return np.where(votes > 0, middle, MISSING)[:, 0].astype(np.int16)


def lay_out(ticks: Integers, wall_times: Floats, table: Floats) -> Timeline:
    """Put window events together: ticks and wall times of shape ``(n,)``, numbers of shape ``(n, 19)``."""
    order = _settle(ticks)
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
    order = _settle(ticks)
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
    codes, nonfinite = _CODE_OF.take(bits[:, 0]), _COUNT_OF.take(bits[:, 1])
    ends, baseline = running_median(codes, calm)
    return Series(tuple(names), windows, layer_axis, codes, nonfinite, ends, baseline)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A layer that has left its level for good, measured by what the others did meanwhile.

    Args:
        layer: Its index.
        place: Where on the axis.
        step: The same as a step.
        factor: What its gradient norm was multiplied by, beside the others'.
    """

    layer: int
    place: float
    step: int
    factor: float


def outliers(series: Series) -> list[Outlier]:
    """Return the layers whose norm leapt at some step and has stayed there, the largest leap first.

    The running median takes a lasting leap for the layer's new usual, so that the heatmap cools down although nothing has healed. Here each
    layer is measured by the median of all at the time, and by its own level before. What leaps together is no outlier: nobody is told of
    more than a quarter of the layers.
    """
    codes, axis = series.codes, series.layer_axis
    n, layers = codes.shape
    blocks = min(n, _LEAP_BLOCKS)
    width = max(3, blocks // 20)
    if layers < 4 or blocks < 4 * width:
        return []
    ends = (np.arange(1, blocks + 1) * n) // blocks
    starts = np.concatenate([[0], ends[:-1]])
    pick = starts[:, None] + (np.arange(_SAMPLES_PER_BLOCK) * (ends - starts)[:, None]) // _SAMPLES_PER_BLOCK
    middle = _median(codes[pick]) / np.float32(CODES)
    level = _beside_the_others(middle)
    windows = np.lib.stride_tricks.sliding_window_view(level, width, axis=0)
    medians = np.median(windows, axis=2)
    leaps = medians[width:] - medians[:-width]
    best = np.argmax(np.abs(leaps), axis=0)
    found = []
    for layer in np.flatnonzero(np.max(np.abs(leaps), axis=0) >= _LEAP):
        at = int(best[layer]) + width
        leap, before = float(leaps[best[layer], layer]), float(medians[best[layer], layer])
        past = level[max(0, at - 3 * width) : at, layer]
        stays = float(np.median(level[at:, layer])) - before
        late = axis.first[starts[at]] - axis.first[0] >= max(20.0, 0.05 * (axis.last[-1] - axis.first[0]))
        quiet = float(np.median(np.abs(past - np.median(past)))) < abs(leap) / 6
        if late and quiet and min(stays / leap, (float(medians[-1, layer]) - before) / leap) > 0.5:
            where = _refine(
                codes, int(layer), before + leap / 2, leap > 0.0, starts[at - 1], ends[min(at + 1, blocks - 1)]
            )
            place = float(axis.first[where])
            found.append(Outlier(int(layer), place, int(place - axis.offsets[where]), float(2.0**stays)))
    if len(found) > max(1, layers // 4):
        return []
    return sorted(found, key=lambda one: -abs(float(np.log2(one.factor))))


_LEAP = 3.0
_LEAP_BLOCKS = 200


def _beside_the_others(log2: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return each layer's log2 norm less the median of all; what was not measured, or was zero, takes the layer's own middle."""
    silent = log2 <= ZERO
    held = np.where(silent, np.nan, log2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        beside = held - np.nanmedian(held, axis=1, keepdims=True)
        own = np.nanmedian(beside, axis=0, keepdims=True)
    filled: npt.NDArray[np.floating] = np.nan_to_num(np.where(np.isnan(beside), own, beside))
    return filled


def _refine(codes: Codes, layer: int, level: float, up: bool, begin: int, end: int) -> int:
    """Return the first window between two at which the layer has passed a level, measured beside the others."""
    beside = _beside_the_others(codes[begin:end] / np.float32(CODES))[:, layer]
    passed = np.flatnonzero(beside >= level if up else beside <= level)
    return begin + int(passed[0]) if len(passed) else begin


def halves(peaks: Floats, nonfinite: Floats) -> Halves:
    """Return what the guard writes of one window's layers, shape ``(2, layers)``: log2 of the peaks, counts of non-finite steps."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log2 = np.nan_to_num(np.log2(peaks), nan=ZERO, posinf=1024.0, neginf=ZERO).clip(min=ZERO)
        return np.stack([log2, np.minimum(np.nan_to_num(nonfinite), 65504.0)]).astype(np.float16)


def spread(halves: Halves, mine: Sequence[str], names: Sequence[str]) -> Halves:
    """Put payloads of one list of layers, shape ``(m, 2, len(mine))``, in the places of another; NaN where it has none."""
    if tuple(mine) == tuple(names):
        return halves
    place = {name: i for i, name in enumerate(names)}
    wide = np.zeros((len(halves), 2, len(names)), np.float16)
    wide[:, 0] = np.nan
    wide[:, :, [place[name] for name in mine]] = halves
    return wide


def _settle(ticks: Integers) -> Integers:
    """Return indices in the order of the ticks; of a tick written twice (a resumed run) the later one counts."""
    order = np.argsort(ticks, kind="stable")
    ordered = ticks[order]
    keep = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    return np.asarray(order[keep], np.int64)


@dataclass(frozen=True, slots=True)
class View:
    """A stretch of a run, at most so many columns wide.

    Args:
        windows: Named columns, each of shape ``(columns,)``.
        layers: Named columns, each of shape ``(layer columns,)``: where each column of the matrices lies.
        codes: Peak norms, shape ``(layers, layer columns)``.
        ratios: Codes of the peak over the running median; :data:`MISSING` where either is.
        nonfinite: Count of steps with a non-finite gradient.
    """

    windows: dict[str, Floats]
    layers: dict[str, Floats]
    codes: Codes
    ratios: Codes
    nonfinite: Counts


def view(series: Series, start: float, end: float, columns: int) -> View:
    """Thin a stretch to at most ``columns`` columns; a column keeps the worst it covers, so no spike is lost."""
    return View(_thin_windows(series, start, end, columns), *_thin_layers(series, start, end, columns))


def _groups(axis: Axis, start: float, end: float, columns: int, *, beside: int = 0) -> tuple[slice, Integers]:
    """Return the windows between two places, and so many beside them, and where in that slice each column begins."""
    low = max(0, int(np.searchsorted(axis.last, start, side="right")) - beside)
    high = min(max(low, int(np.searchsorted(axis.first, end, side="left")) + beside), len(axis.last))
    count = high - low
    if count <= columns:
        return slice(low, high), np.arange(count)
    middle = (axis.first[low:high] + axis.last[low:high]) / 2
    column = np.clip((middle - start) * (columns / (end - start)), 0, columns - 1).astype(np.int64)
    return slice(low, high), np.flatnonzero(np.diff(column, prepend=-1))


def _ends(starts: Integers, count: int) -> Integers:
    return np.append(starts[1:], count) - 1 if len(starts) else starts


def _thin_windows(series: Series, start: float, end: float, columns: int) -> dict[str, Floats]:
    axis = series.windows.axis
    part, starts = _groups(axis, start, end, columns, beside=1)
    table = series.windows.table[part]
    ends = _ends(starts, len(table))
    column = {name: table[:, i] for i, name in enumerate(COLUMNS)}

    def worst(values: Floats) -> Floats:
        """The largest finite value of each column; NaN where there is none."""
        finite = np.where(np.isfinite(values), values, -np.inf)
        top = np.maximum.reduceat(finite, starts) if len(starts) else finite[:0]
        return np.where(np.isfinite(top), top, np.nan)

    def least(values: Floats) -> Floats:
        return np.fmin.reduceat(values, starts) if len(starts) else values[:0]

    def most(values: Floats) -> Floats:
        return np.fmax.reduceat(values, starts) if len(starts) else values[:0]

    peak = column["norm_peak"]
    # Where within its window the peak was; logs of older versions do not say.
    at = np.where(
        np.isnan(column["peak_step"]),
        (axis.first[part] + axis.last[part] - 1) / 2,
        column["peak_step"] + axis.offsets[part],
    )
    highest = worst(peak)
    groups = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(table)))) if len(starts) else starts

    def total(values: npt.NDArray[Any]) -> Floats:
        """The sum of each column; NaN where nothing is known."""
        if not len(starts):
            return np.zeros(0)
        summed = np.add.reduceat(np.nan_to_num(values.astype(np.float64)), starts)
        return np.where(np.add.reduceat(~np.isnan(values), starts), summed, np.nan)

    return {
        "first": axis.first[part][starts],
        "last": axis.last[part][ends],
        "offset": axis.offsets[part][starts],
        "peak": highest,
        "peak_at": _first_of(peak == highest[groups], groups, at, len(starts)),
        "nonfinite": total(~np.isfinite(peak)),
        "nonfinite_at": _first_of(~np.isfinite(peak), groups, at, len(starts)),
        "after": worst(column["norm_after"]),
        "typical": column["typical"][ends],
        "limit": column["limit"][ends],
        "coefficient": least(column["coefficient"]),
        "lr_factor": column["lr_factor"][ends],
        "loss_low": least(column["loss_low"]),
        "loss_high": most(column["loss_high"]),
        "loss_mean": _means(column["loss_mean"], starts),
        **{name: column[name][ends] for name in ("rate", "rate_good", "rate_bad")},
        **{name: total(series.windows.done(name)[part]) for name in COUNTS},
    }


def _first_of(chosen: npt.NDArray[np.bool_], groups: Integers, places: Floats, count: int) -> Floats:
    """Return the place of the first chosen window of each column; NaN where none is."""
    found = np.full(count, np.nan)
    at = np.flatnonzero(chosen)[::-1]
    found[groups[at]] = places[at]
    return found


def _means(values: Floats, starts: Integers) -> Floats:
    if not len(starts):
        return values[:0]
    known = np.add.reduceat(np.isfinite(values).astype(np.float64), starts)
    summed = np.add.reduceat(np.where(np.isfinite(values), values, 0.0), starts)
    means: Floats = np.divide(summed, known, out=np.full(len(starts), np.nan), where=known > 0)
    return means


def _thin_layers(
    series: Series, start: float, end: float, columns: int
) -> tuple[dict[str, Floats], Codes, Codes, Counts]:
    axis = series.layer_axis
    part, starts = _groups(axis, start, end, columns)
    count = part.stop - part.start
    ends = _ends(starts, count)
    places = {"first": axis.first[part][starts], "last": axis.last[part][ends], "offset": axis.offsets[part][starts]}
    codes, nonfinite = series.codes[part], series.nonfinite[part]
    if count > len(starts):
        codes = np.maximum.reduceat(codes, starts, axis=0)
        nonfinite = np.maximum.reduceat(nonfinite, starts, axis=0)
    block = np.searchsorted(series.block_ends, part.start + (starts + ends) // 2, side="right")
    baseline = series.baseline[np.minimum(block, max(len(series.baseline) - 1, 0))]
    unknown = (codes <= ZERO_CODE) | (baseline <= ZERO_CODE)
    difference = np.clip(codes.astype(np.int32) - baseline, -32767, 32767)
    ratios = np.where(unknown, MISSING, difference).astype(np.int16)
    return places, np.ascontiguousarray(codes.T), np.ascontiguousarray(ratios.T), np.ascontiguousarray(nonfinite.T)
