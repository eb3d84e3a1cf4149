"""Colours of the layer x time heatmap: every layer against its own running median.

Layers differ by orders of magnitude, so absolute colours would hide most incidents, and a median over the whole run
would tint the warm-up. The median here is centred, so that a bad first step stands out against the calm that follows
it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_gradguard.records import FloatArray
from lightning_gradguard_tensorboard import colours as shades

HALF_WIDTH = 15

Pixels = npt.NDArray[np.uint8]


def log_ratios(peaks: FloatArray, half_width: int = HALF_WIDTH) -> FloatArray:
    """Return log10 of each peak over its layer's running median, shape ``(layers, columns)``.

    Zeros and non-finite peaks do not enter the median. NaN where there is nothing to show, no gradient or none known.

    Args:
        peaks: Gradient norms, shape ``(layers, columns)``.
        half_width: Columns on each side that the median looks at.
    """
    if peaks.size == 0:
        return np.zeros(peaks.shape)
    usable = np.isfinite(peaks) & (peaks > 0)
    logs = np.full(peaks.shape, np.nan)
    np.log10(peaks, out=logs, where=usable)
    padded = np.pad(logs, ((0, 0), (half_width, half_width)), constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * half_width + 1, axis=1)
    # Sorting puts NaN last: several times faster than nanmedian. The lower middle is taken, so of two columns the calm
    # one.
    ordered = np.sort(views, axis=2)
    counts = np.isfinite(ordered).sum(axis=2)
    middle = np.maximum(counts - 1, 0) // 2
    medians = np.take_along_axis(ordered, middle[:, :, None], axis=2)[:, :, 0]
    ratios: FloatArray = logs - medians
    return ratios


def colours(peaks: FloatArray, nonfinite: FloatArray) -> Pixels:
    """Return the heatmap in the tab's own colours, so that one legend is learned once.

    One pixel a cell, shape ``(layers, columns, 3)``.
    """
    pixels = shades.ratios(log_ratios(peaks) / np.log10(2.0))
    pixels[nonfinite > 0] = shades.special("nonfinite")
    return pixels
