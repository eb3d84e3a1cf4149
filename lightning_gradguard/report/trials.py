"""Treatments on trial, over the loss of a static chart."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.report.svg import LEFT, PLOT, Plot, mark, text


def tried(record: dict[str, Any]) -> bool:
    """Return whether an incident has a treatment whose trial is over or goes on."""
    return bool(record["told"]["trials"]) or "pending" in record["told"]


def trials(records: Sequence[dict[str, Any]], plot: Plot) -> Iterable[str]:
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
        yield from _levels(one["numbers"], one["is_new"], left, right, plot)
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


def _levels(numbers: Sequence[float], is_new: bool, left: float, right: float, plot: Plot) -> Iterable[str]:
    """Yield what was compared.

    A dashed line at the level before the trouble, a ring at that in it, a disc at that of the end. The ring is drawn
    once for trials of one trouble.
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
        if math.isfinite(value) and (is_new or kind == "disc"):
            yield mark("circle", f"level {kind}", cx=x, cy=plot.y(value), r=3.0, stroke_width="1.5")
