"""The tab on real runs under Lightning: what it says, and that what it draws is where and what it should be.

With ``--pictures`` these runs also give the documentation's pictures.
"""

from __future__ import annotations

import csv
import io
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stories
import synthetic
from browsing import NONFINITE, Tab, colours, loaded

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

QUESTIONS = ["Now", "When", "Where", "Done", "Did it help?", "What next?"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("stopped", "bad-layer", "bad-batch", "bad-rate", "second-try", "adversaries"):
        stories.write(folder, name)
    synthetic.write_lasting(folder / "one-of-160")
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
            size = tab.page.viewport_size
            tab.page.set_viewport_size({**size, "height": 1240 if size["width"] == 1000 else 1160})
            tab.page.wait_for_timeout(800)
            # The tab alone: TensorBoard's own bar lies over the tabs' names in a window as small as this.
            tab.page.locator("iframe").screenshot(path=pictures / f"{name}.png")

    return picture


def answers(frame: Any) -> dict[str, str]:
    """The answers to the questions, all of which must be on the first screen."""
    terms = frame.locator(".answers dt").all_inner_texts()
    assert terms == QUESTIONS
    for one in frame.locator(".answers dd").all():
        box = one.bounding_box()
        assert box["height"] > 0 and box["y"] + box["height"] < 800 and box["x"] + box["width"] <= 1000
    return dict(zip(terms, frame.locator(".answers dd").all_inner_texts(), strict=True))


def outside(frame: Any) -> list[str]:
    """Marks of a chart that can be seen outside of its plot."""
    return frame.locator(".charts").first.evaluate(
        """charts => {
            const heat = charts.querySelector("canvas.heat").getBoundingClientRect();
            const found = [];
            for (const svg of charts.querySelectorAll(":scope > svg")) {
                if (!svg.clientWidth) continue;
                const own = svg.getBoundingClientRect();
                if (getComputedStyle(svg).overflow !== "hidden") found.push(`${svg.classList} lets its marks out`);
                const drawn = "polyline, polygon, path, circle, rect, text.mark-text, .dot";
                for (const mark of svg.querySelectorAll(drawn)) {
                    if (mark.closest("clipPath")) continue;
                    const box = mark.getBoundingClientRect();
                    const group = mark.closest("[clip-path]");
                    if (group) {
                        const frame = svg.querySelector(group.getAttribute("clip-path").slice(4, -1) + " rect");
                        const left = own.left + Number(frame.getAttribute("x"));
                        const right = left + Number(frame.getAttribute("width"));
                        const inside = left >= heat.left - 1 && right <= heat.right + 1;
                        if (!inside) found.push(`a frame from ${left} to ${right}`);
                    } else if (box.left < heat.left - 12 || box.right > heat.right + 12) {
                        found.push(`${mark.getAttribute("class")} at ${box.left}`);
                    }
                }
            }
            return found;
        }"""
    )


def test_a_bad_layer(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="bad-layer")
    said = answers(frame)
    assert re.match(r"no alarm for \d+ steps since step 400; the run has ended$", said["Now"])
    assert said["When"].startswith("step 400, sudden")
    assert "blocks.2.2" in said["Where"] and "restored the layer" in said["Done"]
    assert re.match(r"yes: loss 250 → 0\.00\d+, before the trouble 0\.00\d+", said["Did it help?"])
    assert "re-initialised" not in frame.locator("body").inner_text(), "it was restored"
    assert frame.locator("svg.loss .trial.kept").count() == 1
    hot = sum(n for (r, g, b), n in colours(frame).items() if r > b + 60 and (r, g, b) != NONFINITE)
    assert hot > 100, "a single step among a thousand is seen"
    (blamed,) = frame.locator(".label:has(.by)").all()
    assert blamed.get_attribute("title") == "blocks.2.2", "all burn, and one is blamed"
    assert blamed.locator(".by").get_attribute("data-numbers") == frame.locator("svg.norm .dot text").text_content()
    assert "blamed by that incident" in frame.locator(".heat-header .legend").inner_text()
    take("story-bad-layer")


def test_a_bad_batch(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="bad-batch")
    said = answers(frame)
    assert said["When"].startswith("step 500, sudden") and said["Done"].startswith("1 step skipped")
    assert said["Where"] == "only step 500 (batch 500) was bad; no layer is blamed, since skipping it was enough"
    assert "could not be told" not in frame.locator("body").inner_text(), "nobody looked for its cause"
    card = frame.locator(".incident").inner_text()
    assert f"Cause\n{said['Where']}" in card and "Blamed" not in card, "one sentence, wherever it is said"
    assert "no alarm for" in said["Now"] and said["Did it help?"].startswith("calm again after skipping it;")
    take("story-bad-batch")


def test_a_rate_too_high_whose_first_treatment_was_taken_back(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="second-try")
    said = answers(frame)
    assert said["Did it help?"].startswith("yes: loss")
    assert "; 2 treatments before it were taken back" in said["Did it help?"]
    assert frame.locator(".verdict.good b").inner_text() == "Recovered", "the run has ended"
    told = "restored the layer (taken back); rolled back (taken back); rolled back and lowered the learning rate (kept)"
    assert said["Done"].endswith(told)
    assert "the learning rate: it was too high" in said["Where"] and "learning rate well below 2" in said["What next?"]
    assert frame.locator("svg.loss .dot").count() == 1, "it was found by the loss, where the norm was as ever"
    frame.locator(".incident .headline").click()
    frame.locator(".panel[data-loaded]:not([data-loaded='0-900'])").first.wait_for()
    label, norm = (frame.locator(one).bounding_box() for one in (".pin-label", "svg.norm"))
    assert label["y"] >= norm["y"] - 4, "keys of two lines do not cover it"
    assert frame.locator("svg.marks .went-back").count() == 2
    assert frame.locator("svg.loss .trial.back").count() == 2 and frame.locator("svg.loss .trial.kept").count() == 1
    words = frame.locator("svg.loss .trial-word").all_text_contents()
    assert "kept" in words and "taken back" in words
    spans = [
        tuple(float(span.get_attribute(f"data-{end}")) for end in ("from", "to"))
        for span in frame.locator(".trial").all()
    ]
    assert spans == sorted(spans) and all(begin < end for begin, end in spans)
    assert spans[0][0] == 397 and spans[0][1] == spans[1][0]
    assert frame.locator("svg.loss .trial.kept .level").count() == 2, (
        "before, and at the end: the trouble is that of the first"
    )
    take("story-second-try")


def test_marks_do_not_touch_in_a_small_window(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 800})
    for state in ({}, {"incident": "1", "from": "380", "to": "480"}):
        frame = tab.open(run="second-try", **state)
        for drawn in ("svg.marks .mark, svg.marks .back-line", "svg.norm .dot, svg.loss .dot"):
            boxes = [one.bounding_box() for one in frame.locator(drawn).all()]
            touching = [
                (a, b)
                for number, a in enumerate(boxes)
                for b in boxes[:number]
                if a["x"] < b["x"] + b["width"]
                and b["x"] < a["x"] + a["width"]
                and a["y"] < b["y"] + b["height"]
                and b["y"] < a["y"] + a["height"]
            ]
            assert boxes and touching == []
    mark, shade = (frame.locator(f"svg {one}").first.bounding_box() for one in (".backoff", ".rate-lost"))
    assert mark["x"] + mark["width"] / 2 == pytest.approx(shade["x"], abs=1), "where the mark stands"


def test_a_rate_too_high(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="bad-rate")
    said = answers(frame)
    assert re.search(
        r"was lowered to 0\.02 at step 403 and has climbed to [\d.]+ by now, halved \d times .* \d+ times below",
        said["What next?"],
    )
    assert re.search(r"the run has learned with up to 0\.0[2-9]\d*, so it goes on learning", said["What next?"])
    assert "learning rate" in said["Where"] and "lowered the learning rate" in said["Done"]
    assert said["Did it help?"].startswith("yes: loss")
    assert "bound raised from 6 to " in frame.locator("svg.rate").text_content()
    take("story-bad-rate")


def test_a_rollback_under_lightning_is_drawn(tab: Tab) -> None:
    """Its ``global_step`` does not go back, so only the records tell of it."""
    frame = tab.open(run="bad-rate")
    story = tell(tab, "bad-rate")
    assert len(story["optimizers"][0]["segments"]) == 1
    (went,) = [one for incident in story["incidents"] for one in incident["rollbacks"]][:1]
    mark = frame.locator(f"svg.marks .went-back[data-step='{went['step']}']")
    assert mark.locator(".mark-text").text_content() == "↶" and mark.locator(".back-line").count() == 1
    assert f"to step {went['back_to']:,}" in mark.locator("title").text_content() and went["back_to"] < went["step"]
    assert "rollback" in frame.locator(".legend").first.inner_text()


def test_a_stopped_run_says_so(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="stopped")
    sentence = frame.locator(".verdict.bad").inner_text()
    assert "Stopped by GradGuard at step 400: 100 steps in a row were skipped; first the batch at step 301." in sentence
    said = answers(frame)
    assert said["Done"] == "100 steps skipped"
    assert said["What next?"].startswith("look at batch 301 and those after it")
    assert "go on from a checkpoint of step 300 or before" in said["What next?"]
    assert re.search(r"non-finite, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\s*$", said["When"])
    assert frame.locator("svg.marks .mark-count").text_content() == "100 skipped"
    assert frame.locator(".incident code").count() == 0, "the batch is no layer"
    assert said["Now"].startswith("stopped at step 400") and said["Did it help?"] == "no: the run was stopped"
    assert said["Where"] == "batch 301 and those after it"
    card = frame.locator(".incident").inner_text()
    assert "stopped the run" in card and "at step 400" in card and "Calm" not in card and "∞" not in card
    take("story-stopped")
    frame.locator(".incident .headline").click()
    frame.locator(".incident[aria-pressed=true]").wait_for()
    card = frame.locator(".incident").inner_text()
    assert "Calm" not in card and card.count("stopped the run") == 1
    frame.locator("svg.steps .tick").get_by_text("400", exact=True).wait_for()  # zoomed, its end is in sight


def test_trouble_is_drawn_from_the_step_at_which_it_began(tab: Tab) -> None:
    frame = tab.open(run="stopped")
    scale = "(line) => line.getBoundingClientRect().left"
    ticks = {
        text: frame.locator("svg.steps .tick")
        .get_by_text(text, exact=True)
        .evaluate("one => (one.getBoundingClientRect().left + one.getBoundingClientRect().right) / 2")
        for text in ("100", "300")
    }
    begin = ticks["300"] + (ticks["300"] - ticks["100"]) / 200
    first = frame.locator("svg.norm path.nonfinite").first.evaluate(scale) + 4
    assert first == pytest.approx(begin, abs=4)
    heat = frame.locator("canvas.heat")
    left = heat.evaluate(
        """(canvas, [r, g, b]) => {
            const { data } = canvas.getContext("2d").getImageData(0, 5, canvas.width, 1);
            for (let x = 0; x < canvas.width; x++)
              if (data[4 * x] === r && data[4 * x + 1] === g && data[4 * x + 2] === b) return x;
        }""",
        list(NONFINITE),
    )
    assert heat.bounding_box()["x"] + left == pytest.approx(begin, abs=3)


def test_an_incident_stands_at_its_peak(tab: Tab) -> None:
    frame = tab.open(run="bad-layer")
    x, y = map(float, re.findall(r"[\d.]+", frame.locator(".dot").get_attribute("transform")))
    line = [
        tuple(map(float, pair.split(",")))
        for pair in frame.locator("svg.norm .peak").first.get_attribute("points").split()
    ]
    top = min(line, key=lambda point: point[1])
    assert (x, y) == pytest.approx(top, abs=1.5)


def tell(tab: Tab, run: str) -> Any:
    with urllib.request.urlopen(f"{tab.address}/data/plugin/gradguard/story?run={run}") as answer:
        return json.load(answer)


def test_two_optimizers_count_the_trainers_steps_and_are_called_by_their_modules(tab: Tab) -> None:
    frame = tab.open(run="adversaries")
    assert frame.get_by_label("Optimizer").locator("option").all_inner_texts() == ["generator", "critic"]
    frame.get_by_role("button", name=re.compile(r"more under critic")).click()
    frame.locator(".label", has_text="critic.0").wait_for()
    assert frame.get_by_label("Optimizer").input_value() == "1"
    text = frame.locator("aside").inner_text()
    assert re.search(r"\d more under generator", text)
    story = tell(tab, "adversaries")
    end = story["optimizers"][0]["end"]
    assert end == pytest.approx(2000, abs=2), "both optimizers' steps"
    for incident in story["incidents"]:
        for went in incident["rollbacks"]:
            assert 0 <= went["step"] - went["back_to"] < 300, "one unit of step"
            assert f"went back to step {went['back_to']:,}" in json.dumps(incident["told"], ensure_ascii=False)


@pytest.mark.parametrize("width", [1400, 1000])
def test_no_mark_leaves_the_plot_when_zoomed(tab: Tab, width: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": 900})
    frame = tab.open(run="bad-rate")
    assert outside(frame) == []
    box = frame.locator("svg.norm").bounding_box()
    middle = box["x"] + box["width"] / 2 + 40
    tab.page.mouse.move(middle - 30, box["y"] + 60)
    tab.page.mouse.down()
    tab.page.mouse.move(middle + 30, box["y"] + 60, steps=4)
    tab.page.mouse.up()
    frame.locator(".panel[data-loaded]:not([data-loaded='0-1000'])").wait_for()
    assert outside(frame) == []
    # Nothing lies over the cards: what is seen there belongs to them.
    covered = frame.locator("aside").evaluate(
        """aside => {
            const box = aside.getBoundingClientRect();
            const seen = [];
            for (let y = box.top + 4; y < Math.min(box.bottom, innerHeight); y += 12)
                for (let x = box.left + 2; x < box.right; x += 30) seen.push(document.elementFromPoint(x, y));
            return seen.filter(one => one && !aside.contains(one) && one.closest(".charts")).length;
        }"""
    )
    assert covered == 0


def test_one_sick_layer_of_160_is_seen_and_said(tab: Tab, take: Any) -> None:
    frame = tab.open(run="one-of-160")
    verdict = frame.locator(".verdict")
    assert "warning" in verdict.get_attribute("class")
    assert re.search(
        r"1 layer unusual since step 30\d: blocks\.77\.fc has a gradient \d+ times smaller", verdict.inner_text()
    )
    assert frame.locator(".label.pinned").all_inner_texts() == ["blocks.77.fc"]
    assert frame.locator(".label.pinned").bounding_box()["y"] < 900
    take("one-of-160")
    frame.get_by_label("Order").select_option("worst")
    assert frame.locator(".label").first.inner_text() == "blocks.77.fc"
    frame.get_by_label("Order").select_option("name")
    assert frame.locator(".label").first.inner_text() == "blocks.0.fc"
    frame.get_by_label("Search layers").fill("77")
    assert frame.locator(".label").all_inner_texts() == ["blocks.77.fc"]
    frame.get_by_label("Search layers").fill("nobody")
    assert "No layer has this in its name" in frame.locator(".labels").inner_text()


def test_the_room_of_a_few_layers_goes_to_the_charts(tab: Tab) -> None:
    """No empty third of the page, and no crosshair through it."""
    tab.page.set_viewport_size({"width": 1400, "height": 1000})
    frame = tab.open(run="adversaries")
    heat = frame.locator("canvas.heat").bounding_box()
    assert frame.locator("svg.norm").bounding_box()["height"] > 200
    frame.locator("svg.norm").hover(position={"x": 500, "y": 80})
    line = frame.locator(".crosshair").bounding_box()
    rows = len(frame.locator(".label").all()) * 26
    assert line["y"] + line["height"] <= heat["y"] + rows + 3


def test_updates_and_weights_are_shown_and_read_at_the_crosshair(tab: Tab, take: Any) -> None:
    tab.page.set_viewport_size({"width": 1000, "height": 860})
    frame = tab.open(run="bad-layer")
    frame.get_by_label("Statistic").select_option("update")
    frame.locator("h2", has_text="norm of an update over that of the weights").wait_for()
    assert len(colours(frame)) > 20
    heat = frame.locator("canvas.heat")
    heat.hover(position={"x": 300, "y": 50})
    frame.locator(".tooltip").get_by_text("of the weights, in one step").wait_for()
    values = frame.locator(".label .at").all_inner_texts()
    assert len(values) >= 10 and all(1e-6 < float(value) < 1.0 for value in values), "a list beside the layers"
    take("updates")
    frame.get_by_label("Statistic").select_option("weight")
    frame.locator("h2", has_text="norm of the weights against their first").wait_for()
    heat.hover(position={"x": 300, "y": 50})
    frame.locator(".tooltip").get_by_text("its first").wait_for()
    assert all("×" in value for value in frame.locator(".label .at").all_inner_texts())
    with tab.page.expect_download() as numbers:
        frame.locator(".menu summary").click()
        frame.get_by_role("button", name="Numbers (CSV)").click()
    lines = list(csv.DictReader(io.StringIO(Path(numbers.value.path()).read_text())))
    assert float(lines[-1]["weights stem"]) > 0 and 0 < float(lines[-1]["update stem"]) < 1
    link = tab.page.url
    tab.page.goto("about:blank")
    tab.page.goto(link)
    frame.locator("h2", has_text="norm of the weights against their first").wait_for()
    assert frame.get_by_label("Statistic").input_value() == "weight"


def test_a_run_that_measured_no_weights_does_not_offer_them(tab: Tab) -> None:
    frame = tab.open(run="one-of-160", stat="update")
    assert "Update / weight" not in frame.get_by_label("Statistic").locator("option").all_inner_texts()
    frame.locator(".label", has_text="blocks.77.fc").first.wait_for()


def test_the_values_at_a_marked_step_stay_beside_the_layers(tab: Tab) -> None:
    frame = tab.open(run="one-of-160", step=310)
    frame.locator(".telling").wait_for()
    assert frame.locator(".label.pinned .at").inner_text().startswith("0.0")


def test_a_link_opens_at_step_layer_and_zoom(tab: Tab) -> None:
    frame = tab.open(run="one-of-160", step=300, layer="blocks.120.fc", **{"from": 200, "to": 400})
    loaded(frame, "200-400")
    label = frame.locator(".label.chosen .text")
    label.wait_for()
    assert label.inner_text() == "blocks.120.fc" and frame.locator(".pin").inner_text() == "step 300"
    frame.locator(".label", has_text="blocks.119.fc").click()
    assert "p.gradguard.layer=blocks.119.fc" in tab.page.url


def test_what_is_seen_can_be_taken_along(tab: Tab) -> None:
    frame = tab.open(run="bad-layer")
    with tab.page.expect_download() as numbers:
        frame.locator(".menu summary").click()
        frame.get_by_role("button", name="Numbers (CSV)").click()
    assert numbers.value.suggested_filename == "gradguard-bad-layer.csv"
    lines = list(csv.DictReader(io.StringIO(Path(numbers.value.path()).read_text())))
    worst = max(lines, key=lambda line: float(line["norm_peak"] or 0))
    assert worst["peak_step"] == "400" and float(worst["norm blocks.2.2"]) > 0 and float(worst["loss_high"]) > 100
    with tab.page.expect_download() as picture:
        frame.get_by_role("button", name="Picture (PNG)").click()
    content = Path(picture.value.path()).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 30_000
    frame.locator(".incident .headline").click()
    frame.get_by_role("button", name="Copy as Markdown").click()
    frame.get_by_role("button", name="Copied").wait_for()
    text = tab.page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("## GradGuard: sudden at step 400, first in **blocks.2.2**")
    assert "| tried | for | what became of it | loss |" in text and "p.gradguard.incident=1" in text


def test_runs_are_drawn_over_each_other(tab: Tab, take: Any) -> None:
    frame = tab.open(run="bad-layer")
    frame.get_by_label("Draw over").select_option("bad-rate")
    frame.locator("svg.norm .other-0").first.wait_for()
    assert frame.locator("svg.loss .other-0").count() >= 1 and frame.locator(".panel").count() == 1
    frame.get_by_label("Draw over").select_option("bad-batch")
    frame.locator("svg.norm .other-1").first.wait_for()
    link = tab.page.url
    take("drawn-over")
    tab.page.goto("about:blank")
    tab.page.goto(link)
    frame.locator("svg.norm .other-1").first.wait_for()
    frame.get_by_role("button", name="Draw bad-rate no more").click()
    frame.locator("svg.norm .other-1").first.wait_for(state="detached")


def test_the_page_follows_a_run_that_goes_on(tmp_path: Path, chromium: Any, serve: Any) -> None:
    """TensorBoard's own reload is off, as it is until somebody ticks it."""
    (tmp_path / "nothing").mkdir()
    with serve(tmp_path, reload=1) as address:
        tab = Tab(chromium, address)
        frame = tab.open()
        frame.locator(".empty").wait_for()
        writer = synthetic.Writer(tmp_path / "live")

        def go_on(ticks: range) -> None:
            for tick in ticks:
                writer.window(tick, [tick * 10 + 9, tick * 10, 2, 2, 2, 2, 9, 1, 1, 0, 0, 0])
                writer.layers(tick, ["a", "b"], np.ones(2), np.zeros(2))
                writer.now += 1
            writer.flush()

        go_on(range(20))
        frame.locator(".panel[data-loaded='0-200']").wait_for(timeout=20_000)
        go_on(range(20, 30))
        frame.locator(".panel[data-loaded='0-300']").wait_for(timeout=20_000)
        assert "No incident in 300 steps" in frame.locator(".verdict").inner_text()
        writer.close()
        tab.context.close()
        assert tab.complaints == []


def test_what_repeats_is_said_once(tmp_path: Path, chromium: Any, serve: Any) -> None:
    synthetic.write_run(tmp_path / "drifting", ["a", "b"], windows=40)
    writer = synthetic.Writer(tmp_path / "drifting")
    writer.now += 100
    for step in range(50, 400, 50):
        writer.incident("notice", step, None, f"drift: the norm has risen to 1.{step}e+04 over {step} steps")
    writer.close()
    with serve(tmp_path) as address:
        tab = Tab(chromium, address)
        frame = tab.open()
        (text,) = frame.locator(".notices p").all_inner_texts()
        assert text == "7 times, steps 50 – 350 drift: the norm has risen to 13,500 over 350 steps"
        tab.context.close()
        assert tab.complaints == []
