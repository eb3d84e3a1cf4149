"""Colours of the layer x time heatmap: every layer against its own running median.

Layers differ by orders of magnitude, so absolute colours would hide most incidents, and a median over the whole run
would tint the warm-up. The median here is centred, so that a bad first step stands out against the calm that follows
it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradguard.records import FloatArray

HALF_WIDTH = 15
NONFINITE = (195, 0, 126, 255)
"""The tab's own colour for it, so that one legend is learned once."""
UNKNOWN_COLOUR = (128, 128, 128, 40)

# log10 of the ratio -> red, green, blue, alpha. Alpha is zero at 1 x, so that the page's own background, light or dark,
# is "normal".
_STOPS: FloatArray = np.array(
    [
        (-3.0, 33, 102, 172, 255),
        (-1.0, 92, 158, 206, 190),
        (-0.3, 120, 180, 220, 40),
        (0.0, 128, 128, 128, 0),
        (0.3, 253, 190, 110, 50),
        (1.0, 244, 130, 60, 215),
        (2.0, 220, 45, 40, 255),
        (4.0, 150, 0, 35, 255),
    ],
    dtype=np.float64,
)

Pixels = npt.NDArray[np.uint8]


def log_ratios(peaks: FloatArray, half_width: int = HALF_WIDTH) -> FloatArray:
    """Return log10 of each peak over its layer's running median, shape ``(layers, columns)``.

    Zeros and non-finite peaks do not enter the median. NaN where there is nothing to show; a zero counts as the
    smallest.

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
    ratios[(peaks == 0) & (counts > 0)] = _STOPS[0, 0]
    return ratios


def colours(peaks: FloatArray, nonfinite: FloatArray) -> Pixels:
    """Return the heatmap as RGBA, one pixel a cell, shape ``(layers, columns, 4)``."""
    pixels = palette(log_ratios(peaks))
    pixels[~np.isfinite(peaks)] = UNKNOWN_COLOUR
    pixels[nonfinite > 0] = NONFINITE
    return pixels


def palette(ratios: FloatArray) -> Pixels:
    """Return RGBA for log10 ratios of any shape; NaN is :data:`UNKNOWN_COLOUR`."""
    channels: list[Any] = [np.interp(ratios, _STOPS[:, 0], _STOPS[:, c]) for c in range(1, 5)]
    channels = [np.where(np.isnan(ratios), UNKNOWN_COLOUR[i], channel) for i, channel in enumerate(channels)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
