"""The windows of a whole run in bounded memory: neighbours are merged so that no peak is lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from lightning_gradguard.records import FloatArray, Testimony, Window


def worst(first: float, second: float) -> float:
    """Return the larger norm, where NaN is larger than everything."""
    return math.nan if math.isnan(first) or math.isnan(second) else max(first, second)


def merge(earlier: Window, later: Window) -> Window:
    """Return one window that covers both.

    Peaks, updates and what witnesses have seen are maxima, counts of non-finite steps add up, the rest is the later's.
    """
    layers = later.layers
    if earlier.layers != layers:
        layers = tuple(dict.fromkeys(earlier.layers + later.layers))
    peaks = [_spread(w.layer_peaks, w.layers, layers) for w in (earlier, later)]
    nonfinite = [_spread(w.layer_nonfinite, w.layers, layers) for w in (earlier, later)]
    weights = [_spread(w.layer_weights, w.layers, layers) for w in (earlier, later)]
    updates = [_spread(w.layer_updates, w.layers, layers) for w in (earlier, later)]
    # Of two that were not finite the earlier is where it began.
    top = earlier if not math.isfinite(earlier.norm_peak) or earlier.norm_peak >= later.norm_peak else later
    return dataclasses.replace(
        later,
        first_step=earlier.first_step,
        norm_peak=worst(earlier.norm_peak, later.norm_peak),
        peak_step=top.peak_step,
        loss_low=_both(min, earlier.loss_low, later.loss_low),
        loss_high=_both(max, earlier.loss_high, later.loss_high),
        loss_mean=_mean(earlier, later),
        coefficient=min(earlier.coefficient, later.coefficient),
        layers=layers,
        layer_peaks=np.fmax(*peaks),
        layer_nonfinite=np.nan_to_num(nonfinite[0]) + np.nan_to_num(nonfinite[1]),
        layer_weights=np.where(np.isnan(weights[1]), *weights),
        layer_updates=np.fmax(*updates),
        witnessed=_seen(earlier, later),
    )


def _seen(earlier: Window, later: Window) -> tuple[Testimony, ...]:
    """Return the larger of what each witness has seen in two windows."""
    told = {one.witness: one for one in earlier.witnessed}
    for one in later.witnessed:
        known = told.setdefault(one.witness, one)
        told[one.witness] = known if worst(known.value, one.value) is known.value else one
    return tuple(told.values())


def _both(choose: Callable[[float, float], float], first: float, second: float) -> float:
    """Return the chosen one of two numbers, or the one that is known."""
    return first if math.isnan(second) else second if math.isnan(first) else choose(first, second)


def _mean(earlier: Window, later: Window) -> float:
    known = [(w.loss_mean, max(w.step - w.first_step, 0) + 1) for w in (earlier, later) if math.isfinite(w.loss_mean)]
    steps = sum(count for _, count in known)
    return sum(mean * count for mean, count in known) / steps if steps else math.nan


def _spread(values: FloatArray, names: tuple[str, ...], layers: tuple[str, ...]) -> FloatArray:
    """Return ``values`` in the order of ``layers``, NaN where a layer was not seen.

    Older versions know no weights at all.
    """
    if len(values) != len(names):
        return np.full(len(layers), math.nan)
    if names == layers:
        return values
    found = dict(zip(names, values.tolist(), strict=True))
    return np.array([found.get(layer, math.nan) for layer in layers])


class Timeline:
    """Keep at most ``limit`` columns, each covering as many windows as the others (the last may be incomplete).

    Args:
        limit: Largest count of columns, at least 2; when it is passed, pairs are merged and every column covers twice
            as much.

    >>> timeline = Timeline(limit=2)
    >>> len(timeline.columns)
    0
    """

    def __init__(self, limit: int = 512) -> None:
        if limit < 2:
            raise ValueError(f"limit must be at least 2, got {limit}")
        self.columns: list[Window] = []
        self._limit = limit
        self._stride = 1
        self._filled = 0

    def add(self, window: Window) -> None:
        """Take one window in."""
        if self.columns and self._filled < self._stride:
            self.columns[-1] = merge(self.columns[-1], window)
            self._filled += 1
            return
        if len(self.columns) == self._limit:
            self._halve()
            self.add(window)
            return
        self.columns.append(window)
        self._filled = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers ever seen, in order of appearance."""
        return tuple(dict.fromkeys(name for names in dict.fromkeys(c.layers for c in self.columns) for name in names))

    def grid(self) -> tuple[FloatArray, FloatArray]:
        """Return the layers' peaks and non-finite counts, shape ``(len(layers), len(columns))``, NaN where unseen."""
        layers = self.layers
        shape = (len(self.columns), len(layers))
        peaks = np.array([_spread(c.layer_peaks, c.layers, layers) for c in self.columns]).reshape(shape)
        nonfinite = np.array([_spread(c.layer_nonfinite, c.layers, layers) for c in self.columns]).reshape(shape)
        return peaks.T, nonfinite.T

    def _halve(self) -> None:
        pairs = [self.columns[i : i + 2] for i in range(0, len(self.columns), 2)]
        self.columns = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        self._filled = self._stride * len(pairs[-1])
        self._stride *= 2
