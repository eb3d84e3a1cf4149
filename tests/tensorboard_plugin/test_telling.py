"""Trials as the tab tells them: in its verdict, on the cards, and whatever the journal's version or health."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from browsing import Tab

from lightning_gradguard_tensorboard import answers, events, pieces, story, telling
from lightning_gradguard_tensorboard.clock import Heard
from lightning_gradguard_tensorboard.telling.advice import advice

END = (2400.0, 2399)
BACK = {
    "cause": "layer",
    "treatment": ["reinitialize"],
    "opened": 1900,
    "closed": 1964,
    "outcome": "taken back",
    "before": 0.25,
    "trouble": 6.125,
    "after": 6.5,
}
KEPT = {
    "cause": "learning rate",
    "treatment": ["rollback", "backoff"],
    "opened": 1964,
    "closed": 2028,
    "outcome": "kept",
    "before": 0.25,
    "trouble": "inf",
    "after": 0.24,
}


def record(*remedies: str, number: int = 1, cause: str = "unknown", **changes: Any) -> dict[str, Any]:
    decision = {key: changes.pop(key) for key in ("resign", "look") if key in changes}
    made = synthetic.incident(number, 1900, "sudden", "blocks.7.mlp.fc2", remedies=list(remedies), **changes)
    made["actions"][0]["decision"] |= {"cause": cause, **decision}
    return made


def verdict(made: dict[str, Any]) -> tuple[str, str, str]:
    event = events.Event(1, 1.0, 0, {"event": "closed", "incident": made})
    said = story.verdict(events.incidents([event], {}), END)
    return said["level"], said["headline"], "".join(word.get("text", word.get("layer", "")) for word in said["words"])


def watched(**changes: Any) -> dict[str, Any]:
    made = record("skip", "reinitialize", cause="layer", **changes)
    made["actions"][0]["outcomes"] = []
    return made


@pytest.mark.parametrize(
    ("made", "level", "headline", "words"),
    [
        (record("skip", closed=1920), "good", "Calm again", "no alarm for 499 steps since"),
        (watched(closed=1920), "warning", "No more alarms", "nothing was changed, only watched"),
        (record("skip", cause="new regime", closed=1924), "warning", "Learning anew", "have changed for good"),
        (record("skip", trials=[BACK, KEPT], closed=2028, helped=True), "warning", "Recovering", "no alarm for 435"),
        (
            record("skip", trials=[{**KEPT, "trouble": 0.2}], closed=2028, helped=True),
            "warning",
            "Treated",
            "no alarm for",
        ),
        (
            record("skip", trials=[BACK], resign=True, closed=1964, helped=False),
            "bad",
            "Not healed",
            "nothing that was tried helped, and it was taken back; left to try: only skipping and clipping: "
            "the run goes on as you wrote it",
        ),
    ],
)
def test_the_verdict_says_no_more_than_was_measured(
    made: dict[str, Any], level: str, headline: str, words: str
) -> None:
    said = verdict(made)
    assert said[:2] == (level, headline) and words in said[2]


def test_a_run_that_is_only_out_of_the_trouble_was_not_helped() -> None:
    made = record("skip", trials=[BACK, KEPT], closed=2028)
    said = {one["question"]: pieces.plain_text(one["words"]) for one in answers.answers([made], "now", "")}
    assert said["Did it help?"].startswith("out of the trouble, not shown to be better than before it: loss ")
    assert verdict(made)[:2] == ("warning", "Treated")


def test_an_incident_of_an_older_version_keeps_what_it_said() -> None:
    told = telling.tell(synthetic.incident(1, 1900, "sudden", "head", closed=1940, helped=True))
    assert (told["state"], told["findings"], told["trials"]) == ("helped", [], [])


@pytest.mark.parametrize(
    "broken",
    [
        {"trials": 3},
        {"trials": [None, {}, {"treatment": 3, "opened": "x", "before": [], "outcome": {}}], "closed": 1},
        {"closed": 1, "helped": "yes", "actions": [{"decision": {"cause": ["new regime"], "remedies": [None]}}]},
        {"actions": [{"decision": {"remedies": ["backoff"]}, "outcomes": [{"applied": True}]}], "blame": [{}]},
        {"closed": 1, "helped": True, "trials": [{"outcome": "kept"}], "actions": [{"verdict": 3}, {"decision": 4}]},
    ],
)
def test_whatever_is_broken_is_told_somehow(broken: dict[str, Any]) -> None:
    told = telling.tell(broken)
    assert told["state"] in telling.STATES and all(isinstance(f["text"], str) for f in told["findings"])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    synthetic.write_run(folder / "tried", synthetic.transformer(8), windows=240)
    writer = synthetic.Writer(folder / "tried")
    writer.now += 1000
    made = [
        record("skip", number=1, closed=520),
        watched(number=2, closed=760),
        record("skip", "reinitialize", number=3, cause="learning rate", trials=[BACK, KEPT], closed=2028, helped=True),
        record("skip", number=4, cause="new regime", closed=1324),
        record("skip", number=5, cause="layer", trials=[BACK], resign=True, closed=1964, helped=False),
    ]
    for one, step in zip(made, (500, 710, 900, 1300, 1900), strict=True):
        one["step"] = one["actions"][0]["step"] = step
        writer.incident("closed", step, one)
    writer.close()
    return folder


@pytest.fixture
def tab(chromium: Any, serve: Any, logs: Path) -> Iterator[Tab]:
    with serve(logs) as address:
        opened = Tab(chromium, address)
        yield opened
        opened.context.close()
        assert opened.complaints == []


@pytest.mark.browser
def test_the_cards_tell_what_was_tried(tab: Tab) -> None:
    frame = tab.open(run="tried")
    words = [one.split("\u2009")[-1] for one in frame.locator(".incident .state").all_inner_texts()]
    assert [word.split(" ", 1)[1] for word in words] == [
        "did not help",
        "learned anew",
        "helped",
        "only watched",
        "calm again",
    ]
    kinds = [one.get_attribute("class") for one in frame.locator(".dot").all()]
    assert sorted(kind.split()[1] for kind in kinds) == ["bad", "good", "good", "good", "warning"]
    card = frame.locator(".incident[data-number='3']")
    text = card.inner_text()
    assert "Taken back" in text and "the loss was no better than in the trouble" in text
    assert "loss before the trouble 0.25, in it 6.12, at the end 6.5" in text and "in it inf, at the end 0.24" in text
    assert "would have repaired the layer" in frame.locator(".incident[data-number='2']").inner_text()
    assert "the run goes on as you wrote it" in frame.locator(".incident[data-number='5']").inner_text()


@pytest.mark.parametrize(
    ("detector", "told"),
    [
        ("spike", "norm 310, 84 x the limit of 3.7"),
        ("overshoot", "loss 310, 84 x the limit of 3.7"),
        ("cold-start", "310, 84 x the limit of 3.7"),
    ],
)
def test_evidence_says_what_was_measured(detector: str, told: str) -> None:
    assert telling.evidence({"verdict": {"detector": detector, "value": 310.0, "limit": 3.7}}) == told


def test_calm_is_counted_from_the_last_alarm_that_is_known() -> None:
    once, again = record("skip", closed=2028), record("skip", trials=[BACK, KEPT], closed=2028, helped=True)
    assert "no alarm for 499 steps" in verdict(once)[2]
    assert "no alarm for 435 steps" in verdict(again)[2], "the second treatment was called for 64 steps later"


def test_a_run_that_has_ended_is_not_waited_for() -> None:
    made = record("skip", trials=[BACK, KEPT], closed=2028, helped=True)
    records = events.incidents([events.Event(1, 1.0, 0, {"event": "closed", "incident": made})], {})
    going, ended = (story.sentence(story.verdict(records, END, last=Heard(None, one))) for one in (False, True))
    assert "green after 500" in going and "green after" not in ended
    open_now = record("skip", closed=None)
    assert advice(open_now).startswith("wait") and "wait" not in advice(open_now, ended=True)


def test_commands_name_the_runs_own_directory() -> None:
    words = pieces.with_commands("call `guard(at=RUN_DIR)`, then `look RUN_DIR`")
    said = {"answers": [{"question": "What next?", "words": words}]}
    (told,) = pieces.located(said, "my runs/1")["answers"]
    assert pieces.plain_text(told["words"]) == "call `guard(at='my runs/1')`, then `look 'my runs/1'`"
    assert pieces.located(said, None) is said


def test_a_run_that_is_only_watched_says_why_nobody_is_blamed() -> None:
    made = watched(closed=1920)
    made["actions"][0]["decision"]["cause"] = "unknown"
    assert "no copies are kept" not in advice(made)
    made["blame"] = []
    assert advice(made).startswith("no copies are kept to compare layers with, so no layer is blamed: look at")


@pytest.mark.parametrize(("outcome", "told"), [("kept", ""), ("taken back", ", which was put back")])
def test_a_number_of_the_optimizer_that_was_mended_is_named(outcome: str, told: str) -> None:
    trial = {**KEPT, "cause": "optimizer settings", "treatment": ["rollback", "tune"], "outcome": outcome}
    made = record("skip", "rollback", "tune", cause="optimizer settings", trials=[trial], closed=2028)
    made["actions"][0]["outcomes"][-1]["detail"] = "eps 1e-8 -> 2.44e-4"
    assert ("optimizer", f"eps 1e-8 -> 2.44e-4{told}") in list(telling.findings(made))
    assert "give the optimizer other numbers: eps 1e-8 -> 2.44e-4" in advice(made)


@pytest.mark.parametrize(
    ("blame", "told"),
    [
        ({"layer": "net.3", "kind": "Exp"}, "net.3 Exp"),
        ({"layer": "net.3"}, "net.3"),
        ({"layer": "optimizer", "kind": "eps"}, "eps of the optimizer"),
        ({"layer": "optimizer"}, "the optimizer"),
        ({"layer": "loss function", "kind": ""}, "the loss function"),
    ],
)
def test_a_suspect_is_named_with_what_it_is(blame: dict[str, Any], told: str) -> None:
    assert telling.named(blame) == told


def test_weights_that_are_not_finite_have_no_size() -> None:
    assert telling.gains({"broken": True, "weight_ratio": 0.0}) == "weights that are not finite"


def test_only_layers_are_called_layers_and_a_function_gets_advice() -> None:
    blame = [{"layer": "loss function"}, {"layer": "net.2"}]
    assert telling.cause(record("skip", cause="layer") | {"blame": blame}) == "layer net.2"
    swap = advice(record("skip", cause="activation") | {"blame": [{"layer": "net.3", "kind": "Exp"}]})
    assert "net.3 Exp" in swap and "SwapActivation" in swap
