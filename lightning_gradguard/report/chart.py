"""Norm, loss and layers of a run on one axis of steps, as inline SVG without any script.

Axis, columns and colours are the tab's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.report.actions import actions
from lightning_gradguard.report.badge import badge
from lightning_gradguard.report.heatmap import heatmap, map_height
from lightning_gradguard.report.strips import strips
from lightning_gradguard.report.svg import (
    LEFT,
    PLOT,
    WIDTH,
    Plot,
    area,
    decades,
    line,
    mark,
    pieces,
    scale,
    stepped,
    text,
    title,
)
from lightning_gradguard.report.trials import trials, tried
from lightning_gradguard_tensorboard import axis, series
from lightning_gradguard_tensorboard.codes import Floats
from lightning_gradguard_tensorboard.lowered import lowered
from lightning_gradguard_tensorboard.thinning import View
from lightning_gradguard_tensorboard.thinning import view as view_of

CHART_COLUMNS = 800
NORM, LOSS, GAP, HEAD = 190, 110, 16, 26

Records = Sequence[dict[str, Any]]


def draw_chart(run: series.Series, records: Records, *, layers: bool = True) -> str:
    """Return one ``<svg>``.

    Args:
        run: The windows of one optimizer.
        records: Its incidents; each becomes a numbered dot at its step.
        layers: Whether to draw the heatmap.
    """
    ends = run.windows.axis
    start, end = (float(ends.first[0]), float(ends.last[-1])) if len(ends.last) else (0.0, 1.0)
    view = view_of(run, start, end, CHART_COLUMNS)
    top, parts = float(HEAD), []
    norm = Plot(start, end, *decades([view.windows[n] for n in ("peak", "typical", "limit")]), top, NORM)
    parts += [title("gradient norm, largest of each window", top), *scale(norm), *_norm(view, norm)]
    top += NORM + GAP
    loss = None
    losses = np.concatenate([view.windows["loss_low"], view.windows["loss_high"]])
    if np.isfinite(losses).any():
        loss = _loss_plot(losses, start, end, top + HEAD - GAP + 8)
        band, mean = _loss(view, loss)
        told = f"loss{', with treatments on trial' if any(map(tried, records)) else ''}"
        parts += [title(told, loss.top - 6), *scale(loss), band, *trials(records, loss), mean]
        top = loss.top + LOSS + GAP
    fell = lowered(run.windows, records)
    done, top = actions(view, records, fell, norm, top)
    rows, top = strips(view, fell, (start, end), top + 4)
    parts += [*done, *rows]
    parts += _steps(run, norm, top)
    bottom = top + 20.0
    if layers and run.names:
        bottom += HEAD
        parts += [title("layers, against their own running median", bottom), *heatmap(run, view, norm, bottom, records)]
        bottom += map_height(len(run.names))
    for record in records:
        # What the losses have shown stands on the loss: the norm may look as ever.
        on_loss = loss is not None and (record["told"]["evidence"] or {}).get("quantity") == "loss"
        parts.append(_dot(record, view, loss, "loss_high") if loss and on_loss else _dot(record, view, norm, "peak"))
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 8:.0f}" role="img" '
        'aria-label="Gradient norm, loss and layers over the steps" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _norm(view: View, plot: Plot) -> Iterable[str]:
    w = view.windows
    middle = (w["first"] + w["last"]) / 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        low = w["typical"] ** 2 / w["limit"]
    # A stretch of windows that were not finite has no band: nothing in it was healthy.
    lost = [run for run in pieces(w["nonfinite"] > 0) if len(run) > 1]
    hidden = np.isin(np.arange(len(middle)), np.concatenate(lost)) if lost else np.zeros(len(middle), bool)
    low, limit, typical = (np.where(hidden, np.nan, one) for one in (low, w["limit"], w["typical"]))
    places = np.concatenate((w["first"][:1], middle[1:-1], w["last"][-1:])) if len(middle) > 1 else middle
    yield mark("path", "band", d=area(places, low, limit, plot))
    yield mark("path", "limit", d=line(places, limit, plot), stroke_dasharray="5 4", stroke_width="1.3")
    yield mark("path", "typical", d=line(places, typical, plot), opacity=".55")
    at = np.where(np.isnan(w["peak_at"]), middle, w["peak_at"] + 0.5)
    yield mark("path", "peak", d=stepped(w, at, w["peak"], plot), stroke_width="1.5", stroke_linejoin="round")
    for run in pieces(w["nonfinite"] > 0):
        left, right = plot.x(w["nonfinite_at"][run[0]]), plot.x(w["last"][run[-1]])
        if len(run) > 1:
            yield mark(
                "rect", "nonfinite-span", x=left, y=plot.top + 4, width=right - left, height=4.0, fill_opacity=".35"
            )
    for c in np.flatnonzero(w["nonfinite"] > 0).tolist():
        x, title = plot.x(w["nonfinite_at"][c] + 0.5), f"<title>not finite, from step {_step(w, c):,}</title>"
        yield mark("path", "nonfinite", title, d=f"M{x:.1f} {plot.top + 1:.1f}l4 5l-4 5l-4 -5z")


def _step(windows: dict[str, Floats], column: int) -> int:
    return int(windows["nonfinite_at"][column] - windows["offset"][column])


def _loss_plot(losses: Floats, start: float, end: float, top: float) -> Plot:
    known = losses[np.isfinite(losses)]
    if (known > 0).all() and known.max() > 10 * known.min():
        return Plot(start, end, *decades([known]), top, LOSS)
    room = max(0.08 * float(known.max() - known.min()), 1e-12)
    return Plot(start, end, float(known.min()) - room, float(known.max()) + room, top, LOSS, log=False)


def _loss(view: View, plot: Plot) -> tuple[str, str]:
    """Return the band from the lowest to the highest of each window, and the line of the means."""
    w = view.windows
    middle = (w["first"] + w["last"]) / 2
    # Both ends of each window: between two there is no slope.
    ends = np.column_stack((w["first"], w["last"])).ravel()
    band = mark("path", "loss-band", d=area(ends, np.repeat(w["loss_low"], 2), np.repeat(w["loss_high"], 2), plot))
    way = stepped(w, middle, w["loss_mean"], plot)
    return band, mark("path", "loss", d=way, stroke_width="1.5", stroke_linejoin="round")


def _steps(run: series.Series, plot: Plot, top: float) -> Iterable[str]:
    yield mark("path", "axis", d=f"M{LEFT} {top:.1f}H{LEFT + PLOT}")
    yield text("step", LEFT - 8, top + 16, anchor="end")
    for place, step in axis.step_ticks(run.windows.axis.segments, plot.start, plot.end, PLOT):
        yield mark("path", "axis", d=f"M{plot.x(place):.1f} {top:.1f}v4")
        yield text(f"{step:,}", plot.x(place), top + 16, anchor="middle")


def _dot(record: dict[str, Any], view: View, plot: Plot, name: str) -> str:
    """Return a numbered dot at an incident's step and norm or loss, which leads to what is said of it."""
    w, place = view.windows, record["place"]
    c = int(np.clip(np.searchsorted(w["first"], place, side="right") - 1, 0, max(len(w["first"]) - 1, 0)))
    known = len(w["first"]) and w[name][c] > 0 and not w["nonfinite"][c]
    x, y = plot.x(place + 0.5), plot.y(float(w[name][c])) if known else plot.top + 22
    return badge(record, x, y)
