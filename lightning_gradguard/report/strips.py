"""The learning rate and the witnesses, as rows of a static chart below that of the actions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lightning_gradguard.report.svg import LEFT, PLOT, Plot, area, decades, mark, pieces, stairs, stepped, text
from lightning_gradguard_tensorboard.codes import Floats
from lightning_gradguard_tensorboard.lowered import stairs_at
from lightning_gradguard_tensorboard.telling import ROWS, reach, too_high
from lightning_gradguard_tensorboard.thinning import View

RATE, ROW = 40, 26
_TICK_LETTER = 6.4


def strips(view: View, lowered: Sequence[float], stretch: tuple[float, float], top: float) -> tuple[list[str], float]:
    """Return the strip of the rate, if one was ever held to be too high, the rows of witnesses, and where they end."""
    parts: list[str] = []
    if np.isfinite(view.windows["rate_bad"]).any() and _drawable(view.windows["rate"]).any():
        parts += _rate(view, lowered, *stretch, top)
        top += RATE + 4
    seen = [name for name in ROWS if name in view.windows and _drawable(view.windows[name]).any()]
    for name in seen:
        parts += _witness(view, name, *stretch, top)
        top += ROW
    return parts, top + 4 * bool(seen)


def _rate(view: View, lowered: Sequence[float], start: float, end: float, top: float) -> Iterable[str]:
    """Yield what the run has learned with, what has lost it, and the rate in use between them."""
    first, last = stairs_at(view.windows["first"], view.windows["last"], lowered)
    w = {**view.windows, "first": first, "last": last}
    rate, good, bad = w["rate"], w["rate_good"], w["rate_bad"]
    plot = Plot(start, end, *decades([rate, good, bad]), top + 2, RATE - 4.0)
    yield from _name("learning rate", rate, top + RATE / 2 - 2)
    known = list(pieces(_drawable(bad)))
    for run in known:
        places = np.column_stack((first[run], last[run])).ravel()
        values = np.repeat(bad[run], 2)
        yield mark("path", "rate-lost", d=area(places, values, np.full(len(places), 10.0**plot.high), plot))
    for kind, values, kept in (("rate-good", good, _drawable(good) & _drawable(bad)), ("rate", rate, _drawable(rate))):
        dashes = {"stroke_dasharray": "4 3"} if kind == "rate-good" else {}
        for run in pieces(kept):
            yield mark("path", kind, d=stairs(w, run, values, plot), stroke_width="1.5", **dashes)
    if known:
        run = known[-1]
        edge = plot.y(float(bad[run[-1]]))
        y = edge - 4 if edge >= top + 14 else edge + 11
        room = (LEFT + PLOT - 4 - plot.x(first[run[0]])) / _TICK_LETTER
        yield text(too_high(float(bad[run[0]]), float(bad[run[-1]]), room), LEFT + PLOT - 4, y, anchor="end")


def _witness(view: View, name: str, start: float, end: float, top: float) -> Iterable[str]:
    """Yield a line on a logarithmic scale of its own."""
    w, values = view.windows, view.windows[name]
    plot = Plot(start, end, *decades([values]), top + 2, ROW - 4.0)
    yield from _name(ROWS[name], values, top + 9)
    middle = (w["first"] + w["last"]) / 2
    yield mark("path", "witness", d=stepped(w, middle, values, plot, steep=ROW / 4), stroke_width="1.2")
    yield mark("path", "grid", d=f"M{LEFT} {top + ROW:.1f}H{LEFT + PLOT}")


def _name(name: str, values: Floats, y: float) -> Iterable[str]:
    """Yield the name of a row, and below it the lowest and the highest value."""
    known = values[_drawable(values)]
    yield text(name, LEFT - 8, y, anchor="end")
    yield text(reach(float(known.min()), float(known.max())), LEFT - 8, y + 12, "tick reach", "end", font_size="10")


def _drawable(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.isfinite(values) & (values > 0)
