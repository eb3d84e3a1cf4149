"""Norm, loss and layers of a run on one axis of steps, as inline SVG without any script.

Axis, columns and colours are the tab's own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.report.heatmap import heatmap, map_height
from lightning_gradguard.report.svg import LEFT, PLOT, WIDTH, Plot, area, decades, line, mark, scale, text, title
from lightning_gradguard_tensorboard import axis, colours, series
from lightning_gradguard_tensorboard.codes import Floats
from lightning_gradguard_tensorboard.thinning import View
from lightning_gradguard_tensorboard.thinning import view as view_of

CHART_COLUMNS = 800
NORM, LOSS, MARKS, GAP, HEAD = 190, 110, 20, 16, 26

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
    losses = np.concatenate([view.windows["loss_low"], view.windows["loss_high"]])
    if np.isfinite(losses).any():
        loss = _loss_plot(losses, start, end, top + HEAD - GAP + 8)
        band, mean = _loss(view, loss)
        parts += [
            title("loss, with treatments on trial", loss.top - 6),
            *scale(loss),
            band,
            *_trials(records, loss),
            mean,
        ]
        top = loss.top + LOSS + GAP
    parts += _marks(view, records, norm, top)
    top += MARKS + 4
    parts += _steps(run, norm, top)
    bottom = top + 20.0
    if layers and run.names:
        bottom += HEAD
        parts += [title("layers, against their own running median", bottom), *heatmap(run, view, norm, bottom)]
        bottom += map_height(len(run.names))
    parts += [_dot(record, view, norm) for record in records]
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
    yield mark("path", "band", d=area(middle, low, w["limit"], plot))
    yield mark("path", "limit", d=line(middle, w["limit"], plot), stroke_dasharray="5 4", stroke_width="1.3")
    yield mark("path", "typical", d=line(middle, w["typical"], plot), opacity=".55")
    at = np.where(np.isnan(w["peak_at"]), middle, w["peak_at"] + 0.5)
    yield mark("path", "peak", d=line(at, w["peak"], plot), stroke_width="1.5", stroke_linejoin="round")
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
    band = mark("path", "loss-band", d=area(middle, w["loss_low"], w["loss_high"], plot))
    way = line(middle, w["loss_mean"], plot)
    return band, mark("path", "loss", d=way, stroke_width="1.5", stroke_linejoin="round")


def _trials(records: Records, plot: Plot) -> Iterable[str]:
    """Yield a shaded span from each treatment to its verdict, with the levels of the loss that were compared."""
    shown = sorted(
        (one["from"], number, one) for number, record in enumerate(records) for one in record["told"]["trials"]
    )
    free = float(LEFT)
    for _, _, one in shown:
        kind = {"kept": "trial kept", "taken back": "trial back"}.get(one["outcome"], "trial open")
        left, right = plot.x(one["from"]), max(plot.x(one["to"]), plot.x(one["from"]) + 2)
        title = f"<title>{html.escape(wording.clean(one['treatment'] + ': ' + one['became']))}</title>"
        yield mark("rect", kind, title, x=left, y=plot.top, width=right - left, height=plot.height)
        yield from _levels(one["numbers"], left, right, plot)
        room = 6.0 * len(one["outcome"])
        middle = min(max((left + right - room) / 2, LEFT), LEFT + PLOT - room)
        # A word gives way to the one before it, as long as it still touches its span.
        at = max(middle, free)
        if at <= max(middle, right):
            free = at + room + 6
            yield text(wording.clean(one["outcome"]), at, plot.top - 2, "tick")
    for record in records:
        if "pending" in record["told"]:
            left = plot.x(record["told"]["pending"]["from"])
            yield mark("rect", "trial open", x=left, y=plot.top, width=LEFT + PLOT - left, height=plot.height)


def _levels(numbers: Sequence[float], left: float, right: float, plot: Plot) -> Iterable[str]:
    """Yield what was compared.

    A dashed line at the level before the trouble, a ring at that in it, a disc at that of the end.
    """
    before, trouble, after = numbers
    if math.isfinite(before):
        yield mark(
            "path", "level", d=f"M{max(left - 18, LEFT):.1f} {plot.y(before):.1f}H{right:.1f}", stroke_dasharray="3 3"
        )
    if math.isfinite(trouble) and math.isfinite(after):
        way = f"M{left:.1f} {plot.y(trouble):.1f}L{right:.1f} {plot.y(after):.1f}"
        yield mark("path", "level", d=way, stroke_opacity=".5")
    for value, x, kind in ((trouble, left, "ring"), (after, right, "disc")):
        if math.isfinite(value):
            yield mark("circle", f"level {kind}", cx=x, cy=plot.y(value), r=3.0, stroke_width="1.5")


def _marks(view: View, records: Records, plot: Plot, top: float) -> Iterable[str]:
    """Yield what was done: a tall bar for a skipped step, a short one for a clipped one, an arrow for a rollback."""
    w = view.windows
    yield text("actions", LEFT - 8, top + 14, anchor="end")
    for c in range(len(w["first"])):
        x = plot.x((w["first"][c] + w["last"][c]) / 2)
        if w["skipped"][c] > 0 or w["coefficient"][c] == 0.0:
            yield mark("rect", "skipped", x=x - 2, y=top + 2, width=4.0, height=MARKS - 3.0)
        elif w["coefficient"][c] < 1.0:
            yield mark("rect", "clipped", x=x - 1, y=top + MARKS - 10, width=2.0, height=9.0)
    for went in (one for record in records for one in record["rollbacks"]):
        x = plot.x(went["place"])
        back = plot.x(went["back_place"]) if went["back_place"] is not None else x - 12
        title = f"<title>rolled back at step {went['step']:,}</title>"
        yield mark("path", "rollback", title, d=f"M{x:.1f} {top + 9:.1f}H{back:.1f}m4 -4l-4 4l4 4", stroke_width="1.4")


def _steps(run: series.Series, plot: Plot, top: float) -> Iterable[str]:
    yield mark("path", "axis", d=f"M{LEFT} {top:.1f}H{LEFT + PLOT}")
    yield text("step", LEFT - 8, top + 16, anchor="end")
    for place, step in axis.step_ticks(run.windows.axis.segments, plot.start, plot.end, PLOT):
        yield mark("path", "axis", d=f"M{plot.x(place):.1f} {top:.1f}v4")
        yield text(f"{step:,}", plot.x(place), top + 16, anchor="middle")


def _dot(record: dict[str, Any], view: View, plot: Plot) -> str:
    """Return a numbered dot at an incident's step and norm, which leads to what is said of it."""
    w, place = view.windows, record["place"]
    c = int(np.clip(np.searchsorted(w["first"], place, side="right") - 1, 0, max(len(w["first"]) - 1, 0)))
    known = len(w["first"]) and w["peak"][c] > 0 and not w["nonfinite"][c]
    x, y = plot.x(place + 0.5), plot.y(float(w["peak"][c])) if known else plot.top + 6
    sheet, level = colours.sheet("light"), record["told"]["level"]
    title = f"incident {record['number']:,} at step {record['step']:,}: {record.get('form')}"
    return (
        f'<a href="#{anchor(record)}">'
        f'<g class="dot {level}" stroke="{sheet[level]}" stroke-width="2" fill="{sheet["ground"]}">'
        f"<title>{html.escape(wording.clean(title))}</title>"
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8.5"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" stroke="none" fill="{sheet["ink"]}">'
        f"{record['number']}</text></g></a>"
    )


def anchor(record: dict[str, Any]) -> str:
    """Return the name by which a page's dot finds the incident's card."""
    return f"incident-{record['optimizer']}-{record['number']}-{record['step']}"
