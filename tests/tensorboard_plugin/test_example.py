"""The example, followed as the documentation tells a new user: train, open TensorBoard, find the layer and the remedy.

With ``--pictures`` this run also takes the documentation's screenshots.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stories
import torch
from browsing import NONFINITE, Tab, colours, extent, loaded

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "examples" / "inception_explosion.py"
SECOND = "guarded/version_1"
FIRST = "guarded/version_0"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory, pictures: Path | None, chromium: Any) -> Path:
    """Two short guarded runs of the example, with different seeds; for pictures one that is longer."""
    spec = importlib.util.spec_from_file_location("inception_explosion", SCRIPT)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    # Those who ask what is logged come after.
    with stories.quiet(logging.getLogger("lightning_gradguard")):
        for seed, steps in ((0, 300),) if pictures else ((0, 40), (1, 25)):
            options = ["--seed", str(seed), "--max-steps", str(steps), "--log-dir", str(folder)]
            example.train("guarded", example.parse(options))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def address(logs: Path, serve: Any) -> Iterator[str]:
    with serve(logs) as at:
        yield at


@pytest.fixture
def tab(chromium: Any, address: str) -> Iterator[Tab]:
    opened = Tab(chromium, address)
    yield opened
    opened.context.close()
    assert opened.complaints == []


@pytest.fixture
def take(tab: Tab, pictures: Path | None) -> Any:
    def picture(name: str) -> None:
        if pictures is not None:
            tab.page.mouse.move(5, 5)
            tab.page.screenshot(path=pictures / f"example-{name}.png")

    return picture


def test_the_first_screen_names_the_layer_and_the_remedy(tab: Tab, take: Any) -> None:
    frame = tab.open(run=FIRST)
    sentence = frame.locator(".verdict").inner_text()
    assert "the last: cold-start at step 1, first in conv4; 2 steps skipped" in sentence
    card = frame.locator(".incident").inner_text()
    assert "conv4" in card and "the limit of" in card
    labels = frame.locator(".labels").inner_text().split()
    assert labels == [f"conv{i}" for i in range(1, 11)] + ["head"], "forward order"
    counted = colours(frame)
    hot = sum(count for (r, g, b), count in counted.items() if r > b + 60 and (r, g, b) != NONFINITE)
    assert hot > 100 and NONFINITE not in counted
    dot, plot = frame.locator(".dot circle").bounding_box(), frame.locator("svg.norm").bounding_box()
    assert dot["y"] < plot["y"] + 60, "the incident lies at its norm, the largest of the run"
    take("tab")


def test_the_bad_step_has_a_tooltip_of_its_own(tab: Tab) -> None:
    """The first steps have a window each: what happened at step 0 is not smeared over fifty."""
    frame = tab.open(run=FIRST)
    label = frame.locator(".label", has_text="conv4").bounding_box()
    heat = frame.locator("canvas.heat").bounding_box()
    frame.locator("canvas.heat").hover(position={"x": 1, "y": label["y"] - heat["y"] + label["height"] / 2})
    lines = frame.locator(".tooltip").inner_text().split("\n")
    assert lines[:4] == ["layer", "conv4", "step", "0"] and "running median" in lines[-1]
    frame.locator("svg.norm").hover(position={"x": 177, "y": 100})
    tip = frame.locator(".tooltip").inner_text()
    assert "e9" in tip.split("norm\n")[1].split("\n")[0]


def test_a_click_zooms_and_outlines(tab: Tab) -> None:
    frame = tab.open(run=FIRST)
    whole = extent(frame)
    frame.locator(".incident").click()
    frame.locator(".label.blamed").first.wait_for()
    assert frame.locator(".label.blamed").first.inner_text().splitlines()[0] == "conv4"
    frame.locator(f".panel[data-loaded]:not([data-loaded='{whole[0]}-{whole[1]}'])").first.wait_for()
    assert extent(frame)[1] < whole[1] and "p.gradguard.incident=1" in tab.page.url
    assert colours(frame)[(28, 36, 48)] > 500, "the outline"
    frame.get_by_role("button", name="Show all steps").click()
    loaded(frame, f"{whole[0]}-{whole[1]}")


def test_two_runs_and_the_selector(tab: Tab, pictures: Path | None) -> None:
    if pictures:
        pytest.skip("the pictures are of one run")
    frame = tab.open(run=FIRST)
    frame.get_by_label("Beside").select_option(SECOND)
    frame.locator(f".panel[data-run='{SECOND}'][data-loaded]").wait_for()
    assert frame.locator(".panel").count() == 2
    frame.get_by_label("Run", exact=True).select_option(SECOND)
    frame.locator(f".panel[data-run='{SECOND}'][data-loaded='0-25']").wait_for()


def test_dark(tab: Tab) -> None:
    frame = tab.open("?darkMode=true", run=FIRST)
    ground = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert ground == "rgb(29, 31, 35)"
    found = colours(frame).items()
    dark = sum(count for (r, g, b), count in found if max(r, g, b) < 70)
    pale = sum(count for (r, g, b), count in found if min(r, g, b) > 200)
    assert dark > 10 * pale, "calm is dark"


@pytest.mark.parametrize(
    ("view", "words"), [("scalars", "1_log10_norm_peak"), ("text", "cold-start"), ("images", "heatmap")]
)
def test_the_standard_dashboards(tab: Tab, take: Any, view: str, words: str) -> None:
    tab.page.goto(f"{tab.address}/#{view}")
    tab.page.reload()
    tab.page.get_by_text(words).first.wait_for(timeout=30_000)
    if view == "scalars":
        for number, name in enumerate(("norm_peak", "norm_before_clip", "norm_after_clip"), 1):
            tab.page.get_by_text(f"{number}_log10_{name}").first.wait_for()
    if view == "images":
        # Shrunk to a card nobody can read it; at full size every row has its name.
        tab.page.get_by_text("Show actual image size").click()
        sizes = "images => images.map(i => [i.getBoundingClientRect().width, i.naturalWidth])"
        pictures = tab.page.locator("img[alt*='heatmap'], tf-image-loader img")
        tab.page.wait_for_timeout(1500)
        shown = pictures.evaluate_all(sizes)
        assert shown and all(0 < natural <= width + 1 for width, natural in shown)
    tab.page.wait_for_timeout(1500)
    take("heatmap" if view == "images" else view)
