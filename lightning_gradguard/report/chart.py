"""The norm in its band above the layer heatmap, on one axis, as inline SVG without any script."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.heatmap import colours
from lightning_gradguard.diagnostics.picture import encode_png, shorten
from lightning_gradguard.diagnostics.scalars import FLOOR
from lightning_gradguard.diagnostics.timeline import Timeline
from lightning_gradguard.records import Incident, Window

WIDTH, LEFT, RIGHT = 1060, 200, 14
TOP, NORM, GAP = 26, 210, 34
PLOT = WIDTH - LEFT - RIGHT


def draw_chart(timeline: Timeline, incidents: Sequence[Incident]) -> str:
    """Return one ``<svg>``: columns of equal width, since steps may go back when a run is resumed.

    Args:
        timeline: The windows of one optimizer.
        incidents: Its incidents; each becomes a numbered dot above the column it began in.
    """
    columns = timeline.columns
    height_of_map, layers = _map_height(len(timeline.layers)), timeline.layers
    bottom = TOP + NORM + (GAP + height_of_map if layers else 0)
    parts = [_axes(columns, bottom), _norm(columns), _heatmap(timeline, height_of_map) if layers else ""]
    parts += [_dot(columns, incident, bottom) for incident in incidents]
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 24}" role="img" aria-label="Gradient norm and layers over time">'
        f"{''.join(parts)}</svg>"
    )


def _range(columns: Sequence[Window]) -> tuple[int, int]:
    values = [v for c in columns for v in (c.norm_peak, c.typical, c.limit) if math.isfinite(v) and v > 0]
    low = math.floor(math.log10(min(values))) if values else 0
    return max(low, int(FLOOR)), max(math.ceil(math.log10(max(values))) if values else 1, max(low, int(FLOOR)) + 1)


def _x(columns: Sequence[Window], index: float) -> float:
    return LEFT + index * PLOT / max(len(columns), 1)


def _y(value: float, limits: tuple[int, int]) -> float:
    log = math.log10(value) if value > 0 else FLOOR
    return TOP + NORM * (1 - (min(max(log, limits[0]), limits[1]) - limits[0]) / (limits[1] - limits[0]))


def _axes(columns: Sequence[Window], bottom: int) -> str:
    low, high = limits = _range(columns)
    parts = []
    for power in range(low, high + 1, max(1, math.ceil((high - low) / 6))):
        y = _y(10.0**power, limits)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    parts.append(f'<text class="axis" x="{LEFT - 60}" y="{TOP + NORM / 2}" text-anchor="end">gradient norm</text>')
    for index in range(0, len(columns), max(1, math.ceil(len(columns) / 9))):
        x = _x(columns, index)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{columns[index].first_step:,}</text>')
    parts.append(f'<text class="axis" x="{LEFT - 8}" y="{bottom + 16}" text-anchor="end">step</text>')
    return "".join(parts)


def _norm(columns: Sequence[Window]) -> str:
    limits = _range(columns)
    parts = [_band(columns, limits)]
    parts.append(f'<path class="limit" d="{_line([c.limit for c in columns], columns, limits)}"/>')
    parts.append(f'<path class="peak" d="{_line([_drawn_peak(c) for c in columns], columns, limits)}"/>')
    for index, column in enumerate(columns):
        x, peak = _x(columns, index + 0.5), column.norm_peak
        if not math.isfinite(peak):
            title = f"<title>not finite, steps {column.first_step:,} to {column.step:,}</title>"
            parts.append(f'<path class="bad" d="M{x - 4:.1f} {TOP + 8}h8l-4 -8z">{title}</path>')
        elif len(columns) <= 120:
            title = f"<title>step {column.first_step:,} to {column.step:,}: {wording.number(peak)}</title>"
            parts.append(f'<circle class="point" cx="{x:.1f}" cy="{_y(peak, limits):.1f}" r="2">{title}</circle>')
    return "".join(parts)


def _drawn_peak(column: Window) -> float:
    """Return the peak, NaN where a GradScaler's own overflows left none."""
    return math.nan if column.norm_peak == 0.0 and column.overflows else column.norm_peak


def _line(values: Sequence[float], columns: Sequence[Window], limits: tuple[int, int]) -> str:
    """Return path data through the finite values; the line breaks where there is none."""
    path, pen_down = [], False
    for index, value in enumerate(values):
        finite = math.isfinite(value)
        if finite:
            path.append(f"{'L' if pen_down else 'M'}{_x(columns, index + 0.5):.1f} {_y(value, limits):.1f}")
        pen_down = finite
    return "".join(path)


def _band(columns: Sequence[Window], limits: tuple[int, int]) -> str:
    """Return one rectangle a column from the typical norm to the limit; neighbours form the band."""
    width = PLOT / max(len(columns), 1) + 0.3
    rectangles = []
    for index, column in enumerate(columns):
        if math.isfinite(column.typical) and math.isfinite(column.limit):
            top, bottom = sorted((_y(column.limit, limits), _y(column.typical, limits)))
            rectangles.append(f"M{_x(columns, index):.1f} {top:.1f}h{width:.1f}V{bottom:.1f}h-{width:.1f}z")
    return f'<path class="band" d="{"".join(rectangles)}"/>'


def _map_height(rows: int) -> int:
    return 0 if rows == 0 else rows * max(2, min(16, 640 // rows))


def _heatmap(timeline: Timeline, height: int) -> str:
    layers, top = timeline.layers, TOP + NORM + GAP
    row = height / len(layers)
    picture = base64.b64encode(encode_png(colours(*timeline.grid()))).decode("ascii")
    place = f'x="{LEFT}" y="{top}" width="{PLOT}" height="{height}"'
    parts = [
        f'<text class="axis" x="{LEFT}" y="{top - 8}">layers, in forward order</text>',
        f'<rect class="frame" {place}/>',
        f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>',
    ]
    every = max(1, math.ceil(11 / row))
    for index, layer in enumerate(layers):
        name, y = html.escape(wording.clean(layer)), top + index * row
        if index % every == 0:
            label = html.escape(shorten(layer, 30))
            y_text = y + min(row, 12) / 2 + 4
            parts.append(f'<text class="layer" x="{LEFT - 8}" y="{y_text:.1f}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect class="row" x="{LEFT}" y="{y:.1f}" width="{PLOT}" height="{row:.1f}"><title>{name}</title></rect>'
        )
    return "".join(parts)


def _dot(columns: Sequence[Window], incident: Incident, bottom: int) -> str:
    """Return a numbered dot at the last column that holds the incident's step, with a line down through the layers."""
    holds = [i for i, c in enumerate(columns) if c.first_step <= incident.step <= c.step]
    later = [i for i, c in enumerate(columns) if c.step >= incident.step]
    index = holds[-1] if holds else later[0] if later else len(columns) - 1
    x, state = _x(columns, index + 0.5), wording.state(incident)
    return (
        f'<a href="#incident-{incident.optimizer}-{incident.number}-{incident.step}"><g class="dot {state}">'
        f"<title>{html.escape(wording.opening(incident))}</title>"
        f'<path d="M{x:.1f} {TOP - 8}V{bottom}"/><circle cx="{x:.1f}" cy="{TOP - 14}" r="9"/>'
        f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="middle">{incident.number}</text></g></a>'
    )
