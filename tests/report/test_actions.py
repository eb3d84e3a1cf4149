"""The row of actions of a static chart: many skipped steps are one span, and lines do not leap before the trouble."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lightning_gradguard.diagnostics import Journal
from lightning_gradguard.report import read_story
from lightning_gradguard.report.actions import _in_lanes, _joined
from lightning_gradguard.report.chart import draw_chart
from lightning_gradguard.report.svg import LEFT, PLOT
from tests.diagnostics.examples import window


def drawn(folder: Path, changes: dict[int, dict[str, Any]], ticks: int = 40) -> str:
    journal = Journal(folder)
    for tick in range(ticks):
        journal.window(window(tick, **{"clipped": 0, "coefficient": 1.0, **changes.get(tick, {})}))
    journal.close()
    (run,) = read_story(journal.path, folder.parent).optimizers.values()
    return draw_chart(run, [])


def bars(svg: str, kind: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<rect class="{kind}"[^>]*? x="([\d.]+)"[^>]*? width="([\d.]+)"', svg)
    return [(float(x), float(width)) for x, width in found]


def test_many_skipped_steps_are_one_span_with_their_number(tmp_path: Path) -> None:
    # The counts of a window are those of the run so far.
    so_far = [0] * 5 + [1] * 15 + [1 + 25 * more for more in range(1, 11)] + [251] * 10
    lost = {5, *range(20, 30)}
    changes = {tick: {"skipped": so_far[tick], "coefficient": float(tick not in lost)} for tick in range(40)}
    svg = drawn(tmp_path / "run", changes)
    (span, single) = sorted(bars(svg, "skipped"), reverse=True)
    assert span == pytest.approx((LEFT + PLOT / 2, PLOT / 4), abs=0.1) and single[1] == 4.0
    assert svg.count(">250 skipped</text>") == 1


def test_a_window_may_have_skipped_and_clipped_steps(tmp_path: Path) -> None:
    svg = drawn(tmp_path / "run", {4: {"skipped": 1, "clipped": 3, "coefficient": 0.0}}, ticks=5)
    assert len(bars(svg, "skipped")) == len(bars(svg, "clipped")) == 1 and "skipped</text>" not in svg


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path class="{kind}"[^>]*? d="([^"]+)"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_line_leaps_at_the_edge_between_two_windows(tmp_path: Path) -> None:
    worse = {"norm_peak": 5e5, "peak_step": 515, "loss_low": 90.0, "loss_mean": 100.0, "loss_high": 110.0}
    calm = {"loss_low": 0.9, "loss_mean": 1.0, "loss_high": 1.1}
    svg = drawn(tmp_path / "run", {**dict.fromkeys(range(40), calm), 20: worse})
    edges = (LEFT + PLOT * 20 / 40, LEFT + PLOT * 21 / 40)
    for kind, top in (("peak", LEFT + PLOT * 515.5 / 1000), ("loss", sum(edges) / 2)):
        line = points(svg, kind)
        high, low = min(y for _, y in line), max(y for _, y in line)
        assert [x for x, y in line if y < low - 1] == [pytest.approx(top, abs=0.1)], "at its own place alone"
        assert [x for x, _ in line if edges[0] - 1 < x < edges[1] + 1] == pytest.approx(
            [edges[0], top, edges[1]], abs=0.1
        )
        assert (line[0][0], line[-1][0]) == (LEFT, LEFT + PLOT) and high < low - 24


def test_marks_above_the_bars_do_not_touch() -> None:
    placed = _in_lanes([(x, x + 10, lambda top: str(top)) for x in (0.0, 5.0, 11.0, 30.0)])
    assert [lane for lane, _ in placed] == [0, 1, 2, 0]
    assert _joined([(0.0, 4.0), (4.5, 8.5), (20.0, 24.0)]) == [(0.0, 8.5), (20.0, 24.0)]
