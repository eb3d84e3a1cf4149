"""The learning rate and the witnesses have rows in the report and in a notebook, as they have on the tab."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_gradguard.diagnostics import Journal
from lightning_gradguard.records import Testimony, TrialRecord
from lightning_gradguard.report import RunStory, fragment, read_story, render_page
from lightning_gradguard.report.svg import LEFT, PLOT
from lightning_gradguard_tensorboard.telling import ROWS
from tests.diagnostics.examples import incident, window


def told(folder: Path, changes: dict[int, dict[str, Any]], lowered_at: int | None = None) -> RunStory:
    journal = Journal(folder)
    for tick in range(40):
        journal.window(window(tick, **changes.get(tick, {})))
    if lowered_at is not None:
        tried = TrialRecord("learning rate", ("backoff",), lowered_at, lowered_at + 50, "kept", 0.2, 9.0, 0.3)
        journal.incident(incident(step=lowered_at, closed=lowered_at + 60, trials=(tried,)), "closed")
    journal.close()
    return read_story(journal.path, folder.parent)


def xs(svg: str, kind: str) -> list[float]:
    (path,) = re.findall(rf'<path class="{kind}"[^>]*? d="([^"]+)"', svg)
    return [float(x) for x in re.findall(r"(?:[ML])([\d.]+) ", path)]


def seen(tick: int) -> tuple[Testimony, ...]:
    return (Testimony("update_ratio", 1e-3, "fc"), Testimony("second_moment", (1 + tick) / 100, "fc"))


def at(step: float) -> float:
    return LEFT + PLOT * step / 1000


LOWERED = {tick: {"lr_factor": 0.5, "rate": 0.05, "rate_good": 0.01, "rate_bad": 0.1} for tick in range(20, 40)}


def test_the_shade_begins_where_the_mark_of_the_lowered_rate_stands(tmp_path: Path) -> None:
    """Both at the step of the treatment, which lies within a window."""
    first = {tick: {"rate": 0.1} for tick in range(20)}
    page = render_page([told(tmp_path / "run", {**first, **LOWERED}, lowered_at=512)])
    svg = page[page.index("<figure>") :]
    assert xs(svg, "lowered") == [round(at(512) - 5, 1)] and xs(svg, "rate-lost")[0] == round(at(512), 1)
    assert ">0.05 to 0.1<" in svg, "the lowest and the highest rate in use"
    assert "too high: bound 0.1" in page and len(xs(svg, "rate-good")) == 40


def test_without_a_treatment_that_tells_its_step_the_window_does(tmp_path: Path) -> None:
    svg = fragment(told(tmp_path / "run", LOWERED))
    assert xs(svg, "lowered") == [round(at(500) - 5, 1)] and xs(svg, "rate-lost")[0] == round(at(500), 1)


def test_a_run_whose_rate_was_never_at_fault_has_no_strip(tmp_path: Path) -> None:
    svg = fragment(told(tmp_path / "run", {tick: {"rate": 0.1} for tick in range(40)}))
    assert "rate-lost" not in svg and 'class="lowered"' not in svg and ">learning rate<" not in svg


def test_each_witness_that_has_seen_something_has_a_row(tmp_path: Path) -> None:
    svg = fragment(told(tmp_path / "run", {tick: {"witnessed": seen(tick)} for tick in range(40)}))
    names = [name for name in ROWS.values() if f">{name}<" in svg]
    assert names == ["update / weight", "g / √second moment"]
    assert ">0.01 to 0.4<" in svg and ">0.001<" in svg and svg.count('class="witness"') == 2
