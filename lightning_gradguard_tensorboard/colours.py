"""The one set of colours: those of the page's style sheet, for whoever draws the same without a browser."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .codes import CODES, MISSING, Codes, Counts

Theme = Literal["light", "dark"]
FULL = 100.0
"""The ratio at which the scale of the heatmap ends, and below one the inverse of it."""
_SHEET = Path(__file__).parent / "static" / "style.css"


@functools.cache
def sheet(theme: Theme = "light") -> dict[str, str]:
    """Return the custom properties of a theme, without their dashes.

    >>> sheet("light")["nonfinite"]
    '#c3007e'
    """
    text = _SHEET.read_text(encoding="utf-8")
    light, dark = (
        re.search(pattern, text, re.DOTALL)
        for pattern in (r":root \{(.*?)\}", r":root\[data-theme=\"dark\"\] \{(.*?)\}")
    )
    assert light is not None and dark is not None
    found = dict(re.findall(r"--([\w-]+):\s*([^;]+);", light[1]))
    return found if theme == "light" else {**found, **dict(re.findall(r"--([\w-]+):\s*([^;]+);", dark[1]))}


@functools.cache
def _table(theme: Theme) -> npt.NDArray[np.uint8]:
    stops = np.array([_rgb(stop) for stop in sheet(theme)["heat"].split()], np.float64)
    at = np.linspace(0.0, len(stops) - 1.0, 256)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def special(name: Literal["nonfinite", "silent", "ground"], theme: Theme = "light") -> tuple[int, int, int]:
    """Return the colour of what is not finite, of no gradient, or of the page itself."""
    return _rgb(sheet(theme)[name])


def legend(theme: Theme = "light") -> list[tuple[str, tuple[int, int, int]]]:
    """Return what the colours of the heatmap mean, in words, each with its red, green and blue."""
    steps = (("0.01 x", 0.01), ("0.1 x", 0.1), ("usual", 1.0), ("10 x", 10.0), ("100 x", 100.0))
    table = ratios(np.log2([ratio for _, ratio in steps]), theme).tolist()
    told = [(words, (r, g, b)) for (words, _), (r, g, b) in zip(steps, table, strict=True)]
    return [*told, ("NaN or inf", special("nonfinite", theme)), ("no gradient", special("silent", theme))]


def ratios(log2: npt.NDArray[np.floating], theme: Theme = "light") -> npt.NDArray[np.uint8]:
    """Return red, green and blue for log2 of ratios to what is usual, of any shape; NaN is no gradient."""
    known = np.nan_to_num(log2, nan=0.0, posinf=99.0, neginf=-99.0)
    index = np.clip(np.rint(255 * (0.5 + known / np.log2(FULL) / 2)), 0, 255).astype(np.int64)
    pixels: npt.NDArray[np.uint8] = _table(theme)[index]
    pixels[np.isnan(log2)] = special("silent", theme)
    return pixels


def heat(codes: Codes, nonfinite: Counts, theme: Theme = "light") -> npt.NDArray[np.uint8]:
    """Return the heatmap of a view's ratios, shape ``(layers, columns, 3)``."""
    pixels = ratios(np.where(codes == MISSING, np.nan, codes / CODES), theme)
    pixels[nonfinite > 0] = special("nonfinite", theme)
    return pixels
