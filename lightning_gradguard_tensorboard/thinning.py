"""A stretch of a run, thinned to the width of a screen; a column keeps the worst it covers, so no spike is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .axis import Axis
from .codes import MISSING, ZERO_CODE, Codes, Counts, Floats, Integers
from .series import COUNTS, Series
from .weights import Weights
from .wire import COLUMNS, WITNESSES


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
        **{name: worst(column[name]) for name in WITNESSES},
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


def weights(weighed: Weights, start: float, end: float, columns: int) -> tuple[dict[str, Floats], Codes, Codes]:
    """Thin the weights' statistics.

    Where each column lies, the largest norms and the largest updates, shape ``(layers, columns)``.
    """
    axis = weighed.axis
    part, starts = _groups(axis, start, end, columns)
    ends = _ends(starts, part.stop - part.start)
    places = {"first": axis.first[part][starts], "last": axis.last[part][ends], "offset": axis.offsets[part][starts]}
    norms, updates = weighed.norms[part], weighed.updates[part]
    if len(norms) > len(starts):
        norms, updates = (np.maximum.reduceat(codes, starts, axis=0) for codes in (norms, updates))
    return places, np.ascontiguousarray(norms.T), np.ascontiguousarray(updates.T)
