"""What witnesses have seen, from the guard's own sink to the tab, and the words of an incident."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from browsing import Tab
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard.diagnostics import TensorBoardSink, wire
from lightning_gradguard.records import Testimony as Said
from lightning_gradguard.records import to_json
from lightning_gradguard_tensorboard import series, telling, thinning
from lightning_gradguard_tensorboard.wire import COLUMNS, WITNESSES, parse_window
from tests.diagnostics.examples import incident, window


def test_both_sides_agree_on_the_columns() -> None:
    assert wire.WINDOW_FIELDS == COLUMNS and COLUMNS[-5:-1] == WITNESSES and COLUMNS[-1] == "cooled"


def test_a_row_of_an_older_version_has_no_witness() -> None:
    row = parse_window(np.arange(19.0))
    assert row is not None and np.isnan(row[-4:]).all() and row[18] == 18.0


def test_a_column_keeps_the_largest_that_it_covers() -> None:
    table = np.full((40, len(COLUMNS)), np.nan)
    table[:, 0], table[:, 1] = np.arange(9, 400, 10), np.arange(0, 400, 10)
    table[:, COLUMNS.index("update_ratio")] = 1e-3
    table[17, COLUMNS.index("update_ratio")] = 0.5
    timeline = series.lay_out(np.arange(40), np.arange(40.0), table)
    names = ("a",)
    made = series.assemble(names, timeline, np.arange(40), np.arange(40.0), np.zeros((40, 2, 1), np.float16))
    seen = thinning.view(made, 0.0, 400.0, 4).windows
    assert np.nanmax(seen["update_ratio"]) == 0.5 and np.isnan(seen["router_load"]).all()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said("update_ratio", 0.04, "encoder.3", 0.001), "one update moved encoder.3 by 0.04 of its weights, 40 x the"),
        (Said("second_moment", 17.0, "x", 1.1), "the gradient of x lay 17 x above the root of the optimizer's second"),
        (Said("attention_logit", 180.0, "", None), "an attention logit of the root module reached 180"),
        (Said("router_load", math.nan, "r", 1.0), "busiest expert of r was not finite"),
        (Said("own", 3.0, "a\x1b[31m", 1.0), "own of a\ufffd[31m was 3, 3 x the median of the windows before"),
    ],
)
def test_an_incident_tells_what_had_moved(said: Said, words: str) -> None:
    told = dict(telling.findings(to_json(incident(witnessed=(said,)))))
    assert told["witness"].startswith(f"before the alarm {words}")


@pytest.mark.parametrize("broken", [None, 3, "x", [3], [{}], [{"witness": [], "value": {}, "where": 4}]])
def test_what_is_no_evidence_does_no_harm(broken: Any) -> None:
    assert all(isinstance(text, str) for _, text in telling.findings({"witnessed": broken}))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("witnesses")
    with SummaryWriter(folder / "seen") as writer:
        sink = TensorBoardSink(writer)
        for tick in range(60):
            values = (1e-3 if tick != 40 else 0.3, 1.2, 4.0 + tick)
            said = tuple(Said(name, value, "fc") for name, value in zip(WITNESSES, values, strict=False))
            sink.window(window(tick, witnessed=said))
        sink.incident(incident(witnessed=(Said("update_ratio", 0.3, "fc", 1e-3),), step=1010), "opened")
        sink.close()
    synthetic.write_run(folder / "old", synthetic.transformer(1))
    return folder


@pytest.fixture
def tab(chromium: Any, serve: Any, logs: Path) -> Iterator[Tab]:
    with serve(logs) as address:
        opened = Tab(chromium, address)
        yield opened
        opened.context.close()
        assert opened.complaints == []


@pytest.mark.browser
def test_each_that_has_seen_something_has_a_row_in_the_tab(tab: Tab) -> None:
    frame = tab.open(run="seen")
    rows = frame.locator("svg.witnesses")
    assert rows.locator("polyline.witness-line").count() == 3
    text = rows.text_content()
    for name in ("update / weight", "second moment", "attention logit", "0.001 to 0.3", "4 to 63"):
        assert name in text, text
    assert "busiest expert" not in text
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame.locator(".panel").evaluate("panel => new Promise(drawn => setTimeout(drawn, 500))")
    plot, chart = frame.locator("canvas.heat").bounding_box(), rows.bounding_box()
    for words in rows.locator("text").all():
        box = words.bounding_box()
        assert chart["x"] <= box["x"] and box["x"] + box["width"] <= plot["x"], "nothing lies over a line"
    assert "300 x the median" in frame.locator(".incident").first.inner_text()


@pytest.mark.browser
def test_a_run_of_an_older_version_has_none(tab: Tab) -> None:
    frame = tab.open(run="old")
    assert not frame.locator("svg.witnesses").is_visible()
