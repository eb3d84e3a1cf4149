"""What was done at each step, as a row of a static chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.report.svg import LEFT, Plot, mark, pieces, text
from lightning_gradguard_tensorboard import colours
from lightning_gradguard_tensorboard.thinning import View

HEIGHT = 20
_LETTER = 7.0


def actions(view: View, records: Sequence[dict[str, Any]], plot: Plot, top: float) -> Iterable[str]:
    """Yield a tall bar for a skipped step, a short one for a clipped one, an arrow for a rollback.

    Windows of which all was skipped are one span, which says how many steps it is.
    """
    w = view.windows
    yield text("actions", LEFT - 8, top + 14, anchor="end")
    full = (w["skipped"] > 0) & (w["skipped"] >= w["last"] - w["first"])
    beside = np.append(full[1:], False) | np.append(False, full[:-1])[: len(full)]
    whole = full & ((w["skipped"] > 1) | beside)
    for run in pieces(whole):
        yield from _span(plot.x(w["first"][run[0]]), plot.x(w["last"][run[-1]]), int(w["skipped"][run].sum()), top)
    for c in range(len(full)):
        x = plot.x((w["first"][c] + w["last"][c]) / 2)
        if not whole[c] and (w["skipped"][c] > 0 or w["coefficient"][c] == 0.0):
            yield mark("rect", "skipped", x=x - 2, y=top + 2, width=4.0, height=HEIGHT - 3.0)
        if w["clipped"][c] > 0 or 0.0 < w["coefficient"][c] < 1.0:
            yield mark("rect", "clipped", x=x - 1, y=top + HEIGHT - 10, width=2.0, height=9.0)
    for went in (one for record in records for one in record["rollbacks"]):
        x = plot.x(went["place"])
        back = plot.x(went["back_place"]) if went["back_place"] is not None else x - 12
        title = f"<title>rolled back at step {went['step']:,}</title>"
        yield mark("path", "rollback", title, d=f"M{x:.1f} {top + 9:.1f}H{back:.1f}m4 -4l-4 4l4 4", stroke_width="1.4")


def _span(left: float, right: float, count: int, top: float) -> Iterable[str]:
    words, width = f"{count:,} skipped", max(4.0, right - left)
    yield mark("rect", "skipped", f"<title>{words}</title>", x=left, y=top + 2, width=width, height=HEIGHT - 3.0)
    if width > _LETTER * len(words):
        ground = colours.sheet("light")["ground"]
        yield text(words, left + width / 2, top + 14, "on-skipped", "middle", ground, font_weight="600")
