"""The pieces of a static chart: where things are, marks with their colours, text, scales, lines and areas.

Each mark has a class, for a page with a style sheet, and the light theme's colours as attributes, for a notebook that
strips style sheets.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradguard_tensorboard import axis, colours
from lightning_gradguard_tensorboard.codes import Floats
from lightning_gradguard_tensorboard.telling import short

WIDTH, LEFT, RIGHT = 1060, 176, 14
PLOT = WIDTH - LEFT - RIGHT
_STEEP = 24.0


@dataclass(frozen=True, slots=True)
class Plot:
    """Where things are: a stretch of steps from left to right, a range of log10 or plain values from bottom to top."""

    start: float
    end: float
    low: float
    high: float
    top: float
    height: float
    log: bool = True

    def x(self, place: float) -> float:
        """Return where a place on the axis lies."""
        inside = min(max(place, self.start), self.end)
        return LEFT + PLOT * (inside - self.start) / max(self.end - self.start, 1.0)

    def y(self, value: float) -> float:
        """Return where a value lies."""
        level = (math.log10(value) if value > 0 else self.low) if self.log else value
        level = min(max(level, self.low), self.high)
        return self.top + self.height * (1.0 - (level - self.low) / (self.high - self.low))


_STYLES = {
    "grid": ("line", None),
    "frame": ("line", None),
    "axis": ("quiet", None),
    "band": (None, "band"),
    "limit": ("limit", None),
    "typical": ("quiet", None),
    "peak": ("peak", None),
    "nonfinite": (None, "nonfinite"),
    "nonfinite-span": (None, "nonfinite"),
    "loss-band": (None, "loss-band"),
    "loss": ("loss", None),
    "trial kept": ("good", "good"),
    "trial back": ("bad", "bad"),
    "trial open": ("warning", "warning"),
    "level": ("ink", None),
    "level ring": ("ink", "ground"),
    "level disc": ("ink", "ink"),
    "skipped": (None, "held"),
    "clipped": (None, "clip"),
    "rollback": ("ink", None),
    "lowered": (None, "ink"),
    "rate": ("ink", None),
    "rate-good": ("good", None),
    "rate-lost": (None, "bad"),
    "witness": ("peak", None),
}
"""Line and area of each kind of mark, by their names in the style sheet."""


def mark(tag: str, kind: str, content: str = "", **attributes: object) -> str:
    """Return one element of a kind that has colours; ``attributes`` with underscores for dashes."""
    stroke, fill = _STYLES.get(kind, (None, None))
    sheet = colours.sheet("light")
    shown = {"class": kind, "stroke": sheet[stroke] if stroke else None, "fill": sheet[fill] if fill else "none"}
    if kind == "rate-lost":
        shown |= {"fill-opacity": ".16"}
    if kind.startswith("trial"):
        shown |= {"fill-opacity": ".2", "stroke-opacity": ".6"}
    shown |= {name.replace("_", "-"): _attribute(value) for name, value in attributes.items()}
    told = "".join(f' {name}="{value}"' for name, value in shown.items() if value is not None)
    return f"<{tag}{told}>{content}</{tag}>" if content else f"<{tag}{told}/>"


def _attribute(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def text(
    words: str,
    x: float,
    y: float,
    kind: str = "tick",
    anchor: str = "start",
    colour: str | None = None,
    **attributes: object,
) -> str:
    """Return words at a place; ``attributes`` with underscores for dashes."""
    told = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    colour = colour or colours.sheet("light")["ink" if kind == "title" else "quiet"]
    place = f'x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}{told}>{html.escape(words)}</text>'


def title(words: str, top: float) -> str:
    """Return the heading of a chart that begins at ``top``."""
    return text(words, LEFT, top - 9, "title")


def decades(columns: Sequence[Floats]) -> tuple[float, float]:
    """Return log10 of the smallest and the largest number, with some room."""
    values = np.concatenate(columns)
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    if not len(logs):
        return 0.0, 1.0
    room = max(0.12 * float(logs.max() - logs.min()), 0.15)
    return float(logs.min()) - room, float(logs.max()) + room


def scale(plot: Plot) -> Iterable[str]:
    """Yield hairlines at the ticks, with their numbers to the left."""
    if plot.log:
        levels = [10.0**tick for tick in axis.log_ticks(plot.low, plot.high, int(plot.height / 36))]
    else:
        levels = np.linspace(plot.low, plot.high, 4)[1:-1].tolist()
    for level in levels:
        y = plot.y(level)
        yield mark("path", "grid", d=f"M{LEFT} {y:.1f}H{LEFT + PLOT}")
        yield text(short(float(f"{level:.2g}")), LEFT - 8, y + 4, anchor="end")


def line(xs: Floats, ys: Floats, plot: Plot) -> str:
    """Return path data through what can be drawn; the line breaks where there is nothing."""
    path, pen_down = [], False
    for place, value in zip(xs.tolist(), ys.tolist(), strict=True):
        drawn = math.isfinite(value) and (value > 0 or not plot.log)
        if drawn:
            path.append(f"{'L' if pen_down else 'M'}{plot.x(place):.1f} {plot.y(value):.1f}")
        pen_down = drawn
    return "".join(path)


def stairs(windows: Mapping[str, Floats], columns: Sequence[int], ys: Floats, plot: Plot) -> str:
    """Return path data of a line that is level in each of some neighbouring windows."""
    ends = [(place, float(ys[c])) for c in columns for place in (windows["first"][c], windows["last"][c])]
    return f"M{'L'.join(f'{plot.x(place):.1f} {plot.y(value):.1f}' for place, value in ends)}"


def stepped(windows: Mapping[str, Floats], at: Floats, ys: Floats, plot: Plot, steep: float = _STEEP) -> str:
    """Return path data of a line through windows each of which has a place of its own.

    It begins and ends with its windows, and where it leaps, it does so at the edge between two: a slope from the window
    before would show trouble before it began.
    """
    path, first, last = [], windows["first"], windows["last"]
    for piece in pieces(np.isfinite(ys) & ((ys > 0) | (not plot.log))):
        heights = [plot.y(float(ys[c])) for c in piece]
        points = [(first[piece[0]], heights[0])]
        for c, here, after in zip(piece, heights, heights[1:] + heights[-1:], strict=True):
            points.append((at[c], here))
            if abs(after - here) > steep:
                points.append((first[c + 1], max(here, after)))
        points.append((last[piece[-1]], heights[-1]))
        path.append(f"M{'L'.join(f'{plot.x(place):.1f} {y:.1f}' for place, y in points)}")
    return "".join(path)


def pieces(kept: npt.NDArray[np.bool_]) -> Iterable[list[int]]:
    """Return the stretches of neighbouring columns that are kept."""
    known = np.flatnonzero(kept)
    cuts = np.flatnonzero(np.diff(known) > 1) + 1
    return [piece.tolist() for piece in np.split(known, cuts)] if len(known) else []


def area(xs: Floats, low: Floats, high: Floats, plot: Plot) -> str:
    """Return path data of what lies between two lines, in pieces where one of them breaks."""
    path = []
    for piece in pieces(np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not plot.log))):
        above = [f"{plot.x(xs[c]):.1f} {plot.y(high[c]):.1f}" for c in piece]
        below = [f"{plot.x(xs[c]):.1f} {plot.y(low[c]):.1f}" for c in reversed(piece)]
        path.append(f"M{'L'.join(above + below)}z")
    return "".join(path)
