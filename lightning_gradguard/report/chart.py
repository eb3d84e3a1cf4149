"""Norm, loss and layers of a run on one axis of steps, as inline SVG without any script.

Axis, columns and colours are the tab's own. Each mark has a class, for a page with a style sheet, and the light theme's colours as
attributes, for a notebook that strips style sheets.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.picture import encode_png, shorten
from lightning_gradguard_tensorboard import axis, colours, series
from lightning_gradguard_tensorboard.telling import short

WIDTH, LEFT, RIGHT = 1060, 176, 14
PLOT = WIDTH - LEFT - RIGHT
COLUMNS = 800
NORM, LOSS, MARKS, GAP, HEAD = 190, 110, 20, 16, 26

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where things are: a stretch of steps from left to right, a range of log10 or plain values from bottom to top."""

    start: float
    end: float
    low: float
    high: float
    top: float
    height: float
    log: bool = True

    def x(self, place: float) -> float:
        inside = min(max(place, self.start), self.end)
        return LEFT + PLOT * (inside - self.start) / max(self.end - self.start, 1.0)

    def y(self, value: float) -> float:
        level = (math.log10(value) if value > 0 else self.low) if self.log else value
        level = min(max(level, self.low), self.high)
        return self.top + self.height * (1.0 - (level - self.low) / (self.high - self.low))


def draw_chart(run: series.Series, records: Records, *, layers: bool = True) -> str:
    """Return one ``<svg>``.

    Args:
        run: The windows of one optimizer.
        records: Its incidents; each becomes a numbered dot at its step.
        layers: Whether to draw the heatmap.
    """
    ends = run.windows.axis
    start, end = (float(ends.first[0]), float(ends.last[-1])) if len(ends.last) else (0.0, 1.0)
    view = series.view(run, start, end, COLUMNS)
    top, parts = float(HEAD), []
    norm = _Plot(start, end, *_decades([view.windows[n] for n in ("peak", "typical", "limit")]), top, NORM)
    parts += [_title("gradient norm, largest of each window", top), *_scale(norm), *_norm(view, norm)]
    top += NORM + GAP
    losses = np.concatenate([view.windows["loss_low"], view.windows["loss_high"]])
    if np.isfinite(losses).any():
        loss = _loss_plot(losses, start, end, top + HEAD - GAP + 8)
        parts += [
            _title("loss, with treatments on trial", loss.top - 6),
            *_scale(loss),
            *_trials(records, loss),
            *_loss(view, loss),
        ]
        top = loss.top + LOSS + GAP
    parts += _marks(view, records, norm, top)
    top += MARKS + 4
    parts += _steps(run, norm, top)
    bottom = top + 20.0
    if layers and run.names:
        bottom += HEAD
        parts += [_title("layers, against their own running median", bottom), *_heatmap(run, view, norm, bottom)]
        bottom += _map_height(len(run.names))
    parts += [_dot(record, view, norm) for record in records]
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 8:.0f}" role="img" aria-label="Gradient norm, loss and layers over the steps" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


_STYLES = {
    "grid": ("line", None), "axis": ("quiet", None), "band": (None, "band"), "limit": ("limit", None), "typical": ("quiet", None),
    "peak": ("peak", None), "nonfinite": (None, "nonfinite"), "loss-band": (None, "loss-band"), "loss": ("loss", None),
    "trial kept": ("good", "good"), "trial back": ("bad", "bad"), "trial open": ("warning", "warning"), "held": (None, "held"),
    "clipped": (None, "clip"), "rollback": ("ink", None), "level": ("ink", None), "frame": ("line", None),
}  # fmt: skip


def _mark(tag: str, kind: str, content: str = "", **attributes: object) -> str:
    stroke, fill = _STYLES.get(kind, (None, None))
    sheet = colours.sheet("light")
    shown = {"class": kind, "stroke": sheet[stroke] if stroke else None, "fill": sheet[fill] if fill else "none"}
    if kind.startswith("trial"):
        shown |= {"fill-opacity": ".2", "stroke-opacity": ".6"}
    shown |= {name.replace("_", "-"): _attribute(value) for name, value in attributes.items()}
    told = "".join(f' {name}="{value}"' for name, value in shown.items() if value is not None)
    return f"<{tag}{told}>{content}</{tag}>" if content else f"<{tag}{told}/>"


def _attribute(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _text(words: str, x: float, y: float, kind: str = "tick", anchor: str = "start", **attributes: object) -> str:
    told = "".join(f' {name}="{value}"' for name, value in attributes.items())
    colour = colours.sheet("light")["ink" if kind == "title" else "quiet"]
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{told}>{html.escape(words)}</text>'


def _title(words: str, top: float) -> str:
    return _text(words, LEFT, top - 9, "title")


def _decades(columns: Sequence[series.Floats]) -> tuple[float, float]:
    values = np.concatenate(columns)
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    if not len(logs):
        return 0.0, 1.0
    room = max(0.12 * float(logs.max() - logs.min()), 0.15)
    return float(logs.min()) - room, float(logs.max()) + room


def _scale(plot: _Plot) -> Iterable[str]:
    if plot.log:
        levels = [10.0**tick for tick in axis.log_ticks(plot.low, plot.high, int(plot.height / 36))]
    else:
        levels = np.linspace(plot.low, plot.high, 4)[1:-1].tolist()
    for level in levels:
        y = plot.y(level)
        yield _mark("path", "grid", d=f"M{LEFT} {y:.1f}H{LEFT + PLOT}")
        yield _text(short(float(f"{level:.2g}")), LEFT - 8, y + 4, anchor="end")


def _line(xs: series.Floats, ys: series.Floats, plot: _Plot) -> str:
    """Return path data through what can be drawn; the line breaks where there is nothing."""
    path, pen_down = [], False
    for place, value in zip(xs.tolist(), ys.tolist(), strict=True):
        drawn = math.isfinite(value) and (value > 0 or not plot.log)
        if drawn:
            path.append(f"{'L' if pen_down else 'M'}{plot.x(place):.1f} {plot.y(value):.1f}")
        pen_down = drawn
    return "".join(path)


def _area(xs: series.Floats, low: series.Floats, high: series.Floats, plot: _Plot) -> str:
    """Return path data of what lies between two lines, in pieces where one of them breaks."""
    path = []
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not plot.log)))
    for piece in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else ():
        above = [f"{plot.x(xs[c]):.1f} {plot.y(high[c]):.1f}" for c in piece]
        below = [f"{plot.x(xs[c]):.1f} {plot.y(low[c]):.1f}" for c in piece[::-1]]
        path.append(f"M{'L'.join(above + below)}z")
    return "".join(path)


def _norm(view: series.View, plot: _Plot) -> Iterable[str]:
    w = view.windows
    middle = (w["first"] + w["last"]) / 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        low = w["typical"] ** 2 / w["limit"]
    yield _mark("path", "band", d=_area(middle, low, w["limit"], plot))
    yield _mark("path", "limit", d=_line(middle, w["limit"], plot), stroke_dasharray="5 4", stroke_width="1.3")
    yield _mark("path", "typical", d=_line(middle, w["typical"], plot), opacity=".55")
    at = np.where(np.isnan(w["peak_at"]), middle, w["peak_at"] + 0.5)
    yield _mark("path", "peak", d=_line(at, w["peak"], plot), stroke_width="1.5", stroke_linejoin="round")
    for c in np.flatnonzero(w["nonfinite"] > 0).tolist():
        x, title = plot.x(w["nonfinite_at"][c] + 0.5), f"<title>not finite, from step {_step(w, c):,}</title>"
        yield _mark("path", "nonfinite", title, d=f"M{x:.1f} {plot.top + 1:.1f}l4 5l-4 5l-4 -5z")


def _step(windows: dict[str, series.Floats], column: int) -> int:
    return int(windows["nonfinite_at"][column] - windows["offset"][column])


def _loss_plot(losses: series.Floats, start: float, end: float, top: float) -> _Plot:
    known = losses[np.isfinite(losses)]
    if (known > 0).all() and known.max() > 10 * known.min():
        return _Plot(start, end, *_decades([known]), top, LOSS)
    room = max(0.08 * float(known.max() - known.min()), 1e-12)
    return _Plot(start, end, float(known.min()) - room, float(known.max()) + room, top, LOSS, log=False)


def _loss(view: series.View, plot: _Plot) -> Iterable[str]:
    w = view.windows
    middle = (w["first"] + w["last"]) / 2
    yield _mark("path", "loss-band", d=_area(middle, w["loss_low"], w["loss_high"], plot))
    yield _mark("path", "loss", d=_line(middle, w["loss_mean"], plot), stroke_width="1.5", stroke_linejoin="round")


def _trials(records: Records, plot: _Plot) -> Iterable[str]:
    """Yield a shaded span from each treatment to its verdict, with the levels of the loss that were compared."""
    shown = sorted(
        (one["from"], number, one) for number, record in enumerate(records) for one in record["told"]["trials"]
    )
    free = float(LEFT)
    for _, _, one in shown:
        kind = {"kept": "trial kept", "taken back": "trial back"}.get(one["outcome"], "trial open")
        left, right = plot.x(one["from"]), max(plot.x(one["to"]), plot.x(one["from"]) + 2)
        title = f"<title>{html.escape(wording.clean(one['treatment'] + ': ' + one['became']))}</title>"
        yield _mark("rect", kind, title, x=left, y=plot.top, width=right - left, height=plot.height)
        before, trouble, after = one["numbers"]
        for level, x in ((before, left - 14), (trouble, left), (after, right - 7)):
            if math.isfinite(level):
                yield _mark("path", "level", d=f"M{max(x, LEFT):.1f} {plot.y(level):.1f}h14", stroke_width="2")
        room = 6.0 * len(one["outcome"])
        middle = min(max((left + right - room) / 2, LEFT), LEFT + PLOT - room)
        # A word gives way to the one before it, as long as it still touches its span.
        at = max(middle, free)
        if at <= max(middle, right):
            free = at + room + 6
            yield _text(wording.clean(one["outcome"]), at, plot.top - 2, "tick")
    for record in records:
        if "pending" in record["told"]:
            left = plot.x(record["told"]["pending"]["from"])
            yield _mark("rect", "trial open", x=left, y=plot.top, width=LEFT + PLOT - left, height=plot.height)


def _marks(view: series.View, records: Records, plot: _Plot, top: float) -> Iterable[str]:
    """Yield what was done: a tall bar for a skipped step, a short one for a clipped one, an arrow back for a rollback."""
    w = view.windows
    yield _text("actions", LEFT - 8, top + 14, anchor="end")
    for c in range(len(w["first"])):
        x = plot.x((w["first"][c] + w["last"][c]) / 2)
        if w["skipped"][c] > 0 or w["coefficient"][c] == 0.0:
            yield _mark("rect", "held", x=x - 2, y=top + 2, width=4.0, height=MARKS - 3.0)
        elif w["coefficient"][c] < 1.0:
            yield _mark("rect", "clipped", x=x - 1, y=top + MARKS - 10, width=2.0, height=9.0)
    for went in (one for record in records for one in record["rollbacks"]):
        x = plot.x(went["place"])
        back = plot.x(went["back_place"]) if went["back_place"] is not None else x - 12
        title = f"<title>rolled back at step {went['step']:,}</title>"
        yield _mark("path", "rollback", title, d=f"M{x:.1f} {top + 9:.1f}H{back:.1f}m4 -4l-4 4l4 4", stroke_width="1.4")


def _steps(run: series.Series, plot: _Plot, top: float) -> Iterable[str]:
    yield _mark("path", "axis", d=f"M{LEFT} {top:.1f}H{LEFT + PLOT}")
    yield _text("step", LEFT - 8, top + 16, anchor="end")
    for place, step in axis.step_ticks(run.windows.axis.segments, plot.start, plot.end, PLOT):
        yield _mark("path", "axis", d=f"M{plot.x(place):.1f} {top:.1f}v4")
        yield _text(f"{step:,}", plot.x(place), top + 16, anchor="middle")


def _map_height(rows: int) -> int:
    return 0 if rows == 0 else rows * max(2, min(16, 640 // rows))


def _heatmap(run: series.Series, view: series.View, plot: _Plot, top: float) -> Iterable[str]:
    height = _map_height(len(run.names))
    row = height / len(run.names)
    first = view.layers["first"]
    places = plot.start + (np.arange(PLOT) + 0.5) / PLOT * (plot.end - plot.start)
    # What lies between two columns belongs to the earlier one.
    column = np.clip(np.searchsorted(first, places, side="right") - 1, 0, max(len(first) - 1, 0))
    # A column narrower than a pixel must not vanish: the hotter ones win two pixels each.
    heat = np.where(
        view.nonfinite > 0, 10**6, np.where(view.ratios == series.MISSING, 0, np.abs(view.ratios.astype(int)))
    )
    hottest = heat.max(axis=0, initial=0)
    for c in np.argsort(hottest, kind="stable"):
        if hottest[c] >= series.CODES * np.log2(colours.FULL) / 2:
            left = int(np.clip((first[c] - plot.start) / (plot.end - plot.start) * PLOT, 0, PLOT - 2))
            cooler = hottest[column[left : left + 2]] < hottest[c]
            column[left : left + 2] = np.where(cooler, c, column[left : left + 2])
    at = f'x="{LEFT}" y="{top:.1f}" width="{PLOT}" height="{height}"'
    yield f'<rect class="frame" {at} fill="none" stroke="{colours.sheet("light")["line"]}"/>'
    for theme in ("light", "dark") if len(first) else ():
        pixels = colours.heat(view.ratios, view.nonfinite, theme)[:, column]
        picture = base64.b64encode(encode_png(pixels)).decode("ascii")
        # A notebook, which knows no theme, shows the light one.
        hidden = ' display="none"' if theme == "dark" else ""
        yield f'<image class="{theme}" {at}{hidden} preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>'
    every = max(1, math.ceil(11 / row))
    for index, layer in enumerate(run.names):
        y = top + index * row
        if index % every == 0:
            yield _text(shorten(layer, 26), LEFT - 8, y + min(row, 12) / 2 + 4, "layer", "end")
        title = f"<title>{html.escape(wording.clean(layer))}</title>"
        yield f'<rect class="row" x="{LEFT}" y="{y:.1f}" width="{PLOT}" height="{row:.1f}" fill="transparent">{title}</rect>'


def _dot(record: dict[str, Any], view: series.View, plot: _Plot) -> str:
    """Return a numbered dot at an incident's step and norm, which leads to what is said of it."""
    w, place = view.windows, record["place"]
    c = int(np.clip(np.searchsorted(w["first"], place, side="right") - 1, 0, max(len(w["first"]) - 1, 0)))
    known = len(w["first"]) and w["peak"][c] > 0 and not w["nonfinite"][c]
    x, y = plot.x(place + 0.5), plot.y(float(w["peak"][c])) if known else plot.top + 6
    sheet, level = colours.sheet("light"), record["told"]["level"]
    title = f"incident {record['number']:,} at step {record['step']:,}: {record.get('form')}"
    return (
        f'<a href="#{anchor(record)}"><g class="dot {level}" stroke="{sheet[level]}" stroke-width="2" fill="{sheet["ground"]}">'
        f"<title>{html.escape(wording.clean(title))}</title>"
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8.5"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" stroke="none" fill="{sheet["ink"]}">{record["number"]}</text></g></a>'
    )


def anchor(record: dict[str, Any]) -> str:
    """Return the name by which a page's dot finds the incident's card."""
    return f"incident-{record['optimizer']}-{record['number']}-{record['step']}"
