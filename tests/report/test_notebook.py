"""What a notebook and a terminal show of a run: a verdict, a static picture, a word beside the bar."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import lightning_gradguard
from lightning_gradguard import GradGuard
from lightning_gradguard.diagnostics import Journal
from tests.diagnostics.examples import HOSTILE, incident, window
from tests.diagnostics.test_wording import ALL_TAKEN_BACK, CALM, SECOND_KEPT
from tests.tensorboard_plugin.stories import Regression, bad_layer_at, train


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.depth = 0
        self.feed(page)
        assert self.depth == 0, "what opens closes"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.depth += tag != "br"

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def write(folder: Path, **changes: Any) -> Path:
    journal = Journal(folder)
    for tick in range(20):
        journal.window(window(tick, loss_low=0.1, loss_high=0.4, loss_mean=0.2, **changes))
    journal.incident(dataclasses.replace(SECOND_KEPT, step=40), "closed")
    journal.close()
    return journal.path


def test_a_notebook_shows_the_verdict_and_a_static_picture(tmp_path: Path) -> None:
    shown = lightning_gradguard.show(write(tmp_path / "run").parent)
    page = shown._repr_html_()
    tags = Tags(page).seen
    assert {"svg", "image", "rect"} <= set(tags) and not {"script", "style", "link", "iframe"} & set(tags)
    assert "Recovered" in page and "Did it help?" in page and "taken back" in page
    assert 'fill="none" stroke="#24406b"' in page.replace(
        'stroke="#24406b" fill="none"', 'fill="none" stroke="#24406b"'
    )
    assert "Recovered" in repr(shown) and "\x1b" not in repr(shown)


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    assert repr(lightning_gradguard.show(tmp_path)) == f"no journal was found in {tmp_path}"
    assert "No journal" in lightning_gradguard.show(tmp_path)._repr_html_()


@pytest.mark.parametrize(
    "one", [CALM, SECOND_KEPT, ALL_TAKEN_BACK, incident(), incident(layer=HOSTILE, form="<script>")]
)
def test_an_incident_has_a_card(one: Any) -> None:
    page = one._repr_html_()
    tags = Tags(page).seen
    assert "script" not in tags and "incident" in page.lower()
    assert ("svg" in tags) == bool(one.trials)


def test_an_incident_whose_losses_are_unknown_has_no_picture() -> None:
    nan = dict.fromkeys(("before", "trouble", "after"), math.nan)
    one = dataclasses.replace(SECOND_KEPT, trials=(dataclasses.replace(SECOND_KEPT.trials[0], **nan),))
    assert "svg" not in Tags(one._repr_html_()).seen


def test_the_callback_shows_its_run(tmp_path: Path) -> None:
    guard = GradGuard()
    assert "no incident so far" in guard._repr_html_()
    train(tmp_path, "run", Regression(bad_layer_at(120, "blocks.1.2"), blocks=2), 200, guard)
    page = guard._repr_html_()
    assert "blocks.1.2" in page and "restored the layer" in page and "svg" in Tags(page).seen
