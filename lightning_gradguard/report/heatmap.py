"""The heatmap of a static chart: an image with a row a layer, whose names are shown and found by the pointer."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.picture import encode_png, shorten
from lightning_gradguard.report.badge import badge
from lightning_gradguard.report.svg import LEFT, PLOT, Plot, text
from lightning_gradguard_tensorboard import colours, series
from lightning_gradguard_tensorboard.codes import CODES, MISSING
from lightning_gradguard_tensorboard.telling import dicts
from lightning_gradguard_tensorboard.thinning import View


def map_height(rows: int) -> int:
    """Return the height of the map of so many layers."""
    return 0 if rows == 0 else rows * max(2, min(16, 640 // rows))


def heatmap(
    run: series.Series, view: View, plot: Plot, top: float, records: Sequence[Mapping[str, Any]] = ()
) -> Iterable[str]:
    """Yield the map, its labels and its rows.

    A layer that an incident blames has that incident's circle beside its name, which is bold.
    """
    height = map_height(len(run.names))
    row = height / len(run.names)
    first = view.layers["first"]
    places = plot.start + (np.arange(PLOT) + 0.5) / PLOT * (plot.end - plot.start)
    # What lies between two columns belongs to the earlier one.
    column = np.clip(np.searchsorted(first, places, side="right") - 1, 0, max(len(first) - 1, 0))
    # A column narrower than a pixel must not vanish: the hotter ones win two pixels each.
    heat = np.where(view.nonfinite > 0, 10**6, np.where(view.ratios == MISSING, 0, np.abs(view.ratios.astype(int))))
    hottest = heat.max(axis=0, initial=0)
    for c in np.argsort(hottest, kind="stable"):
        if hottest[c] >= CODES * np.log2(colours.FULL) / 2:
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
        # What strips style sheets leaves attributes: cells have edges.
        shape = 'preserveAspectRatio="none" image-rendering="pixelated"'
        yield f'<image class="{theme}" {at}{hidden} {shape} href="data:image/png;base64,{picture}"/>'
    every = max(1, math.ceil(11 / row))
    blamed = _blamed(records)
    marked = [index for index, layer in enumerate(run.names) if layer in blamed]
    for index, layer in enumerate(run.names):
        y = top + index * row
        middle = y + min(row, 12) / 2
        if layer in blamed:
            yield text(shorten(layer, 23), LEFT - 24, middle + 4, "layer blamed", "end", font_weight="700")
            yield badge(blamed[layer], LEFT - 13, middle, 6.5)
        elif index % every == 0 and all(abs(index - other) >= every for other in marked):
            yield text(shorten(layer, 26), LEFT - 8, middle + 4, "layer", "end")
        title = f"<title>{html.escape(wording.clean(layer))}</title>"
        place = f'x="{LEFT}" y="{y:.1f}" width="{PLOT}" height="{row:.1f}"'
        yield f'<rect class="row" {place} fill="transparent">{title}</rect>'


def _blamed(records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the layers that incidents blame first, each with the newest of them; records are newest first."""
    told = [(dicts(record.get("blame")), record) for record in records]
    return {str(blame[0].get("layer")): record for blame, record in reversed(told) if blame}
