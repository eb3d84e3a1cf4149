"""What was done at each step, as a row of a static chart: bars, and above them marks in lanes in which none touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.report.svg import LEFT, Plot, mark, pieces, text
from lightning_gradguard_tensorboard import colours
from lightning_gradguard_tensorboard.thinning import View

BARS, LANE, MOST_LANES = 24, 13, 4
_LETTER = 7.0

Mark = tuple[float, float, Callable[[float], str]]
"""From where to where it reaches, and how it is drawn in a lane that begins at a height."""


def actions(
    view: View, records: Sequence[dict[str, Any]], lowered: Sequence[float], plot: Plot, top: float
) -> tuple[list[str], float]:
    """Return the marks, and where they end.

    A tall bar for a skipped step, a short one for a clipped one, a triangle for a lower rate, an arrow for a rollback.
    """
    went = [one for record in records for one in record["rollbacks"]]
    above = _in_lanes([*(_lowered(plot.x(place)) for place in lowered), *(_rollback(one, plot) for one in went)])
    bars = top + LANE * max((lane + 1 for lane, _ in above), default=0)
    parts = [text("actions", LEFT - 8, bars + 14, anchor="end"), *_bars(view, plot, bars)]
    return [*parts, *(draw(bars - LANE * (lane + 1)) for lane, draw in above)], bars + BARS


def _bars(view: View, plot: Plot, top: float) -> Iterable[str]:
    """Yield skipped and clipped steps.

    Windows of which all was skipped are one span, which says how many steps it is; bars that would touch are one bar.
    """
    w = view.windows
    full = (w["skipped"] > 0) & (w["skipped"] >= w["last"] - w["first"])
    beside = np.append(full[1:], False) | np.append(False, full[:-1])[: len(full)]
    whole = full & ((w["skipped"] > 1) | beside)
    for run in pieces(whole):
        yield from _span(plot.x(w["first"][run[0]]), plot.x(w["last"][run[-1]]), int(w["skipped"][run].sum()), top)
    middle = (w["first"] + w["last"]) / 2
    held = ~whole & ((w["skipped"] > 0) | (w["coefficient"] == 0.0))
    cut = (w["clipped"] > 0) | ((w["coefficient"] > 0.0) & (w["coefficient"] < 1.0))
    for kind, kept, half, y, height in (("skipped", held, 2.0, 1.0, 15.0), ("clipped", cut, 1.0, 17.0, 5.0)):
        for left, right in _joined([(plot.x(at) - half, plot.x(at) + half) for at in middle[kept].tolist()]):
            yield mark("rect", kind, x=left, y=top + y, width=right - left, height=height)


def _span(left: float, right: float, count: int, top: float) -> Iterable[str]:
    words, width = f"{count:,} skipped", max(4.0, right - left)
    yield mark("rect", "skipped", f"<title>{words}</title>", x=left, y=top + 1, width=width, height=15.0)
    if width > _LETTER * len(words):
        ground = colours.sheet("light")["ground"]
        yield text(words, left + width / 2, top + 12, "on-skipped", "middle", ground, font_weight="600")


def _joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for left, right in spans:
        if found and left < found[-1][1] + 1:
            found[-1] = found[-1][0], max(right, found[-1][1])
        else:
            found.append((left, right))
    return found


def _in_lanes(marks: Iterable[Mark]) -> list[tuple[int, Callable[[float], str]]]:
    """Give each mark the lowest lane in which it touches no other."""
    ends: list[float] = []
    placed = []
    for left, right, draw in sorted(marks, key=lambda one: one[0]):
        free = next((lane for lane, end in enumerate(ends) if left > end + 2), len(ends))
        lane = free if free < MOST_LANES else 0
        if lane == len(ends):
            ends.append(right)
        ends[lane] = max(right, ends[lane])
        placed.append((lane, draw))
    return placed


def _lowered(x: float) -> Mark:
    def draw(top: float) -> str:
        words = "<title>the learning rate was lowered</title>"
        return mark("path", "lowered", words, d=f"M{x - 5:.1f} {top + 2:.1f}h10l-5 8z")

    return x - 5, x + 5, draw


def _rollback(went: dict[str, Any], plot: Plot) -> Mark:
    x = plot.x(went["place"])
    back = plot.x(went["back_place"]) if went["back_place"] is not None else x - 12

    def draw(top: float) -> str:
        words = f"<title>rolled back at step {went['step']:,}</title>"
        return mark("path", "rollback", words, d=f"M{x:.1f} {top + 7:.1f}H{back:.1f}m4 -4l-4 4l4 4", stroke_width="1.4")

    return min(back, x), x + 2, draw
