"""The tab as a person sees it, on synthetic logs: a real TensorBoard and a headless Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from browsing import NONFINITE, Tab, colours, extent, loaded

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    names = synthetic.transformer(12)
    synthetic.write_run(folder / "guarded", names, sick=True)
    synthetic.write_run(folder / "healthy", names[:20], seed=3)
    synthetic.write_run(folder / "unguarded", names, diverge=True)
    synthetic.write_hostile(folder / "hostile")
    synthetic.write_run(folder / "mixed", names[:20], amp=True)
    return folder


@pytest.fixture(scope="module")
def address(logs: Path, serve: Any) -> Iterator[str]:
    with serve(logs, reload=5) as at:
        yield at


@pytest.fixture
def tab(chromium: Any, address: str) -> Iterator[Tab]:
    opened = Tab(chromium, address)
    yield opened
    opened.context.close()
    assert opened.complaints == []


def test_a_bad_night_in_ten_seconds(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    verdict = frame.locator(".verdict")
    assert "warning" in verdict.get_attribute("class")
    assert (
        "4 incidents in 3,800 steps; the last: sudden at step 3,005, first in blocks.7.attn.proj"
        in verdict.inner_text()
    )
    assert frame.locator(".incident").count() == 4
    first = frame.locator(".incident").first.inner_text()
    for evidence in (
        "sudden",
        "step 3,005",
        "helped",
        "against a limit of",
        "blocks.7.attn.proj",
        "×180",
        "clip",
        "605",
    ):
        assert evidence in first
    assert frame.locator(".dot").count() == 4

    counted = colours(frame)
    assert 0 < counted[NONFINITE] < 0.02 * sum(counted.values()), "one column of non-finite gradients"
    hot = sum(count for (r, g, b), count in counted.items() if r > b + 60 and (r, g, b) != NONFINITE)
    calm = sum(count for (r, g, b), count in counted.items() if abs(r - b) < 40)
    assert hot > 100 and calm > 0.9 * sum(counted.values())


def test_tooltip_tells_layer_step_value_and_ratio(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    frame.locator("canvas.heat").hover(position={"x": 400, "y": 10})
    tip = frame.locator(".tooltip")
    tip.wait_for()
    text = tip.inner_text()
    assert "embed" in text and re.search(r"2,0\d0 – 2,0\d9", text) and "running median" in text and "value" in text
    frame.locator("svg.norm").hover(position={"x": 500, "y": 100})
    assert "limit" in tip.inner_text()


def test_a_click_on_an_incident_zooms_and_outlines(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    before = extent(frame)
    frame.locator(".incident[data-number='3']").click()
    loaded(frame, "2185-2785")
    assert extent(frame) != before
    assert frame.locator(".label.blamed").inner_text() == "attn.proj", "its block has been unfolded"
    assert frame.locator(".incident[data-number='3']").get_attribute("aria-pressed") == "true"
    assert frame.locator(".pin").inner_text() == "step 2,485"
    assert colours(frame)[(28, 36, 48)] > 500, "the outline"
    frame.get_by_role("button", name="Show all steps").click()
    loaded(frame, f"{before[0]}-{before[1]}")


def test_a_link_shows_what_its_sender_saw(tab: Tab) -> None:
    frame = tab.open(run="guarded", stat="norm")
    frame.get_by_role("button", name="Incident 3,").locator("circle").click()
    loaded(frame, "2185-2785")
    frame.get_by_role("button", name="Copy link").click()
    link = tab.page.evaluate("navigator.clipboard.readText()")
    assert "p.gradguard.step=2485" in link
    tab.page.goto("about:blank")
    tab.page.goto(link)
    frame = tab.page.frame_locator("iframe")
    loaded(frame, "2185-2785")
    frame.locator(".label.blamed").wait_for()
    assert frame.get_by_label("Statistic").input_value() == "norm"


def test_selectors(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    frame.get_by_label("Run", exact=True).select_option("healthy")
    frame.locator(".panel[data-run='healthy'][data-loaded]").wait_for()
    assert "No incident in 4,000 steps" in frame.locator(".verdict.good").inner_text()
    assert NONFINITE not in colours(frame)
    before = colours(frame)
    frame.get_by_label("Colours").select_option("viridis")
    assert colours(frame) != before
    before = colours(frame)
    frame.get_by_label("Statistic").select_option("norm")
    assert colours(frame) != before
    frame.get_by_label("Statistic").select_option("nonfinite")
    assert len(colours(frame)) < 8


def test_two_runs_side_by_side(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    frame.get_by_label("Beside").select_option("unguarded")
    frame.locator(".panel[data-run='unguarded'][data-loaded]").wait_for()
    assert frame.locator(".panel").count() == 2
    assert "non-finite or over its limit since step 2,0" in frame.locator(".verdict.bad").inner_text()
    frame.locator("canvas.heat").first.hover(position={"x": 200, "y": 100})
    lines = frame.locator(".crosshair")
    assert lines.nth(0).is_visible() and lines.nth(1).is_visible(), "one cursor for both"


def test_the_overflow_that_a_scaler_expects_raises_no_alarm(tab: Tab) -> None:
    frame = tab.open(run="mixed")
    assert "GradScaler skipped 15 steps by itself" in frame.locator(".verdict.good").inner_text()
    assert frame.locator("svg.norm path.overflow").count() == 6
    assert frame.locator("svg.norm path.nonfinite").count() == 0 and frame.locator(".mark.held").count() == 0
    assert NONFINITE not in colours(frame)
    frame.locator("svg.norm").hover(position={"x": 177, "y": 60})
    assert "10 steps skipped by the GradScaler" in frame.locator(".tooltip").inner_text()


def test_each_mark_has_a_shape_and_a_colour_of_its_own(tab: Tab) -> None:
    """What was skipped, what was clipped and what was not finite must not be mistaken for each other."""
    frame = tab.open(run="guarded")
    look = "one => { const s = getComputedStyle(one); return one.tagName + one.getAttribute('height') + s.fill; }"
    marks = [frame.locator(f"svg {name}").first for name in (".mark.held", ".mark.clipped", "path.nonfinite")]
    looks = [mark.evaluate(look) for mark in marks]
    assert len(set(looks)) == 3 and len({one.partition("rgb")[2] for one in looks}) == 3
    legend = frame.locator(".legend").first.inner_text()
    assert all(word in legend for word in ("non-finite", "scaler overflow", "clipped", "skipped"))


def test_by_keyboard(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    heat = frame.locator("canvas.heat")
    heat.focus()
    heat.press("Home")
    heat.press("ArrowDown")
    assert "blocks.0" in frame.locator(".tooltip").inner_text()
    assert "blocks.0" in frame.locator("[aria-live]").inner_text(), "said to a screen reader"
    heat.press(" ")
    assert frame.locator(".label.child").count() == 6
    heat.press("+")
    loaded(frame, "3-2003")
    heat.press("Enter")
    assert "step=5" in tab.page.url
    heat.press("0")
    loaded(frame, "0-4000")
    frame.locator(".incident").first.focus()
    frame.locator(".incident").first.press("Enter")
    frame.locator(".label.blamed").wait_for()


def test_drag_zooms_and_double_click_shows_all(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    box = frame.locator("canvas.heat").bounding_box()
    tab.page.mouse.move(box["x"] + 200, box["y"] + 50)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 400, box["y"] + 60, steps=4)
    tab.page.mouse.up()
    frame.locator(".panel[data-loaded]:not([data-loaded='0-4000'])").wait_for()
    low, high = extent(frame)
    assert 900 < low < 1100 and 1900 < high < 2100
    frame.locator("canvas.heat").dblclick()
    loaded(frame, "0-4000")


def test_dark(tab: Tab) -> None:
    frame = tab.open("?darkMode=true", run="guarded")
    assert frame.locator("html").get_attribute("data-theme") == "dark"
    ground = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert ground == "rgb(29, 31, 35)"
    assert (255, 77, 184) in colours(frame), "non-finite has its own dark-mode colour"
    tab.page.evaluate("document.body.classList.remove('dark-mode')")
    assert frame.locator("html[data-theme=light]").count() == 1


def test_hostile_names_do_no_harm(tab: Tab) -> None:
    frame = tab.open(run="hostile")
    assert (
        "<script>window.hacked=1</script>"
        in frame.locator(".labels").inner_text() + frame.locator("aside").inner_text()
    )
    frame.locator(".incident").first.click()
    frame.locator("canvas.heat").hover(position={"x": 50, "y": 10})
    assert all(one.evaluate("window.hacked") is None for one in tab.page.frames)
    assert frame.locator("img, script:not([src]):not([type=module])").count() == 0


def test_empty(chromium: Any, serve: Any, tmp_path: Path) -> None:
    writer = synthetic.Writer(tmp_path / "other")
    writer.scalar("loss", 1, 2.0)
    writer.close()
    with serve(tmp_path, reload=1) as address:
        tab = Tab(chromium, address)
        frame = tab.open()
        assert "GradGuard()" in frame.locator(".empty pre").inner_text()
        synthetic.write_run(tmp_path / "first", ["a", "b"], windows=20)
        # The page fills when TensorBoard's own reload button is pressed.
        for _ in range(40):
            tab.page.locator(".reload-button").click()
            if frame.locator(".verdict").count():
                break
            time.sleep(0.25)
        frame.locator(".verdict.good").wait_for(timeout=5000)
        tab.context.close()
        assert tab.complaints == []
