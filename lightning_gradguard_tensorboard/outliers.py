"""Layers that have left their level for good, although the norm of all is in its band."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import Axis
from .codes import CODES, Codes
from .median import SAMPLES_PER_BLOCK, median
from .wire import ZERO

LEAP_OF_LEVEL = 3.0
"""Doublings, up or down, that make a leap."""
OUTLIER_BLOCKS = 200


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


def outliers(codes: Codes, axis: Axis) -> tuple[Outlier, ...]:
    """Return the layers whose norm leapt at some step and has stayed there, the largest leap first.

    The running median takes a lasting leap for the layer's new usual, so that the heatmap cools down although nothing
    has healed. Here each layer is measured by the median of all at the time, and by its own level before. What leaps
    together is no outlier: nobody is told of more than a quarter of the layers.

    Args:
        codes: log2 of the norms, shape ``(n, layers)``.
        axis: Where each window lies, ``n`` of them.
    """
    n, layers = codes.shape
    blocks = min(n, OUTLIER_BLOCKS)
    width = max(3, blocks // 20)
    if layers < 4 or blocks < 4 * width:
        return ()
    ends = (np.arange(1, blocks + 1) * n) // blocks
    starts = np.concatenate([[0], ends[:-1]])
    pick = starts[:, None] + (np.arange(SAMPLES_PER_BLOCK) * (ends - starts)[:, None]) // SAMPLES_PER_BLOCK
    middle = median(codes[pick]) / np.float32(CODES)
    level = _beside_the_others(middle)
    windows = np.lib.stride_tricks.sliding_window_view(level, width, axis=0)
    medians = np.median(windows, axis=2)
    leaps = medians[width:] - medians[:-width]
    best = np.argmax(np.abs(leaps), axis=0)
    found: list[Outlier] = []
    for layer in np.flatnonzero(np.max(np.abs(leaps), axis=0) >= LEAP_OF_LEVEL):
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
        return ()
    return tuple(sorted(found, key=lambda one: -abs(float(np.log2(one.factor)))))


def _beside_the_others(log2: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return each layer's log2 norm less the median of all.

    What was not measured, or was zero, takes the layer's own middle.
    """
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
