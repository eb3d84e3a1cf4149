"""The tab as a person sees it, on synthetic logs: a real TensorBoard and a headless Chromium."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
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
    long = [f"{'a_long_container.' * 10}layers.{i}.attention.query_projection" for i in range(9)]
    synthetic.write_run(folder / "late", long, width=5000, first=12_345_678_901)
    synthetic.write_pair(folder / "pair")
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
    assert "good" in verdict.get_attribute("class"), "long over"
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
        "the limit of",
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
    assert frame.locator(".label.blamed .text").inner_text() == "attn.proj", "its block has been unfolded"
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
    assert all(word in legend for word in ("typical", "limit", "non-finite", "clipped", "skipped", "rollback"))
    assert "scaler overflow" not in legend, "what there is not needs no key"
    assert "scaler overflow" in tab.open(run="mixed").locator(".legend").first.inner_text()


def middle(box: dict[str, float]) -> float:
    return box["x"] + box["width"] / 2


def test_norm_actions_and_layers_share_one_step_axis(tab: Tab) -> None:
    """The held step's dot, diamond, bar and column stand above each other, and where the ticks say that they are."""
    frame = tab.open(run="guarded")
    dot = frame.get_by_role("button", name="Incident 2,").locator("circle").bounding_box()
    diamond = frame.locator("svg.norm path.nonfinite").bounding_box()
    bar = frame.locator(".mark.held").bounding_box()
    heat = frame.locator("canvas.heat")
    columns = heat.evaluate(
        """(canvas, [r, g, b]) => {
            const { data } = canvas.getContext("2d").getImageData(0, 5, canvas.width, 1);
            const found = [];
            for (let x = 0; x < canvas.width; x++)
              if (data[4 * x] === r && data[4 * x + 1] === g && data[4 * x + 2] === b) found.push(x);
            return found;
        }""",
        list(NONFINITE),
    )
    magenta = heat.bounding_box()["x"] + sum(columns) / len(columns)
    ticks = {
        text: middle(frame.locator("svg.steps .tick").get_by_text(text, exact=True).bounding_box())
        for text in ("1,000", "2,000")
    }
    expected = ticks["1,000"] + 0.885 * (ticks["2,000"] - ticks["1,000"])
    for place in (middle(dot), middle(diamond), middle(bar), magenta):
        assert place == pytest.approx(expected, abs=4)


def points(line: Any) -> list[list[float]]:
    return [[float(number) for number in pair.split(",")] for pair in line.get_attribute("points").split()]


def test_the_norm_lies_in_its_band_below_its_limit(tab: Tab) -> None:
    frame = tab.open(run="healthy")
    limit, typical = (points(frame.locator(f"svg.norm .{name}")) for name in ("limit", "typical"))
    # All begin and end with their windows.
    peak, band = points(frame.locator("svg.norm .peak")), points(frame.locator("svg.norm .band"))
    floor = float(frame.locator("svg.norm").get_attribute("height"))
    assert [x for x, _ in limit] == [x for x, _ in typical] == [x for x, _ in peak], "downwards on the screen is less"
    assert all(above < norm for (_, above), (_, norm) in zip(limit, peak, strict=True))
    assert band[: len(limit)] == limit and len(band) == 2 * len(limit)
    for (_, above), (_, centre), (_, below) in zip(limit, typical, band[: len(limit) - 1 : -1], strict=True):
        # As far below the centre as the limit is above, to the floor of the chart.
        assert below == pytest.approx(min(2 * centre - above, floor), abs=0.2)
    frame = tab.open(run="guarded")
    dot = frame.get_by_role("button", name="Incident 4,").get_attribute("transform")
    x, y = (float(number) for number in re.findall(r"[\d.]+", dot))
    spike = min(y for line in frame.locator("svg.norm .peak").all() for at, y in points(line) if abs(at - x) < 4)
    assert y == pytest.approx(spike, abs=1), "an incident lies at its norm"


def test_incidents_come_newest_first_with_all_that_is_known(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    assert frame.locator(".incident .badge").all_inner_texts() == ["4", "3", "2", "1"]
    terms = frame.locator(".incident").first.locator("dt").all_inner_texts()
    assert terms == ["Evidence", "Blamed", "Done", "Batch", "Time"]
    assert frame.locator(".incident .state").all_inner_texts() == ["✓ helped"] * 4
    gains = frame.locator(".incident").first.locator(".gains").inner_text()
    assert [word in gains for word in ("forward ×180", "backward ×44", "weights ×9.5")] == [True] * 3


def test_blocks_fold_and_show_the_worst_of_their_layers(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    assert frame.locator(".label.block").count() == 12
    assert frame.locator(".label.block[aria-expanded=true]").inner_text().split()[1] == "blocks.7", "what stands out"
    frame.locator(".label.block", has_text="blocks.7").click()
    assert frame.locator(".label.child").count() == 0
    frame.locator(".label.block", has_text="blocks.0").click()
    assert frame.locator(".label.child").all_inner_texts() == list(synthetic.BLOCKS)
    frame.get_by_role("button", name="Unfold all").click()
    assert frame.locator(".label.block").first.get_attribute("aria-expanded") == "true"
    frame.get_by_role("button", name="Fold all", exact=True).click()
    assert frame.locator(".label.child").count() == 0


@pytest.mark.parametrize(("height", "pinned"), [(1100, False), (800, True)])
def test_a_layer_that_is_blamed_is_listed_once(tab: Tab, height: int, pinned: bool) -> None:
    """In its block where that is in sight, above all others where it is not, and where its block is folded."""
    tab.page.set_viewport_size({"width": 1400, "height": height})
    frame = tab.open(run="guarded")
    named = frame.locator(".label[title='blocks.7.attn.proj']")
    assert named.count() == 1 and ("pinned" in named.get_attribute("class")) == pinned
    frame.locator(".incident[data-number='3']").click()
    loaded(frame, "2185-2785")
    assert frame.locator(".label.blamed").count() == 1
    frame.locator(".label.block", has_text="blocks.7").click()
    assert named.count() == (1 if pinned else 0), "in a folded block it needs no row as long as all rows are in sight"


def test_two_optimizers_have_a_view_each(tab: Tab) -> None:
    from playwright.sync_api import expect  # only here it is known to be installed

    frame = tab.open(run="pair")
    for optimizer, layers in (("0", ["generator.0", "generator.1"]), ("1", ["critic.0", "critic.1", "critic.2"])):
        frame.get_by_label("Optimizer").select_option(optimizer)
        loaded(frame, "0-60")
        # It is drawn anew for each answer that comes, so what is there is waited for and not read once.
        expect(frame.locator(".label")).to_have_text(layers)
        frame.locator("svg.norm .peak").wait_for(state="attached")
        assert frame.locator("svg.norm .peak").count() == 1, "a norm of its own"
        assert sum(colours(frame).values()) > 0 and len(colours(frame)) > 3


def test_long_names_and_large_steps_stay_legible(tab: Tab) -> None:
    frame = tab.open(run="late")
    labels = frame.locator(".label").all_inner_texts()
    assert len(set(labels)) == 9 and all(label.startswith(f"{i}.") for i, label in enumerate(labels))
    assert frame.locator(".label").first.get_attribute("title").endswith("layers.0.attention.query_projection")
    ticks = frame.locator("svg.steps .tick[text-anchor=middle], svg.steps .tick.name")
    boxes = sorted(ticks.evaluate_all("all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.right])"))
    assert len(boxes) > 3
    assert all(right <= left for (_, right), (left, _) in pairwise(boxes)), "labels lie apart"


def test_a_narrow_window_puts_the_incidents_below(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 760, "height": 900})
    frame = tab.open(run="guarded")
    heat, first = frame.locator("canvas.heat").bounding_box(), frame.locator(".incident").first.bounding_box()
    assert heat["height"] > 200 and first["y"] >= heat["y"] + heat["height"]
    frame.locator(".incident").first.scroll_into_view_if_needed()
    frame.locator(".incident").first.click()
    frame.locator(".label.blamed").first.wait_for()


def test_by_keyboard(tab: Tab) -> None:
    frame = tab.open(run="guarded")
    heat = frame.locator("canvas.heat")
    heat.focus()
    frame.locator(".label.block", has_text="blocks.7").click()
    heat.focus()
    heat.press("Home")
    while "blocks.0" not in frame.locator(".tooltip").inner_text():
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
    frame.locator(".label.blamed").first.wait_for()
    heat.focus()
    heat.press("/")
    tab.page.keyboard.type("head")
    assert frame.locator(".label .text").all_inner_texts() == ["head"], "a search by keyboard alone"


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
