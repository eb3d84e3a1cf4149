"""The verdict sentence and the merging of incident events."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import synthetic

from lightning_gradguard_tensorboard import events, series, story, telling
from lightning_gradguard_tensorboard.wire import COLUMNS


def event(tick: int, payload: Any) -> events.Event:
    made = story.parse_event(tick, float(tick), 0, json.dumps(payload))
    assert made is not None
    return made


def said(verdict: dict[str, Any]) -> str:
    return "".join(word.get("text", word.get("layer", "")) for word in verdict["words"])


def record(**changes: Any) -> dict[str, Any]:
    made = synthetic.incident(1, 1900, "non-finite", "blocks.7.mlp.fc2", value="inf", **changes)
    return events.incidents([event(1, {"event": "closed", "incident": made, "message": None, "step": 1900})], {})[0]


END = (2400.0, 2399)


def test_healthy_is_green() -> None:
    verdict = story.verdict([], END)
    assert verdict["level"] == "good" and said(verdict) == "No incident in 2,400 steps."


def test_a_layer_that_has_left_its_level_is_told_without_a_fraction() -> None:
    unusual = [{"layer": "fc", "step": 300, "factor": 1 / 4.4}, {"layer": "stem", "step": 310, "factor": 12.0}]
    told = said(story.amend(story.verdict([], END), unusual))
    assert "fc has a gradient 4.4 times smaller than before, stem has a gradient 12 times larger than before." in told


def test_recovered_is_amber_and_names_the_layer() -> None:
    verdict = story.verdict([record(closed=1940, helped=True)], END)
    assert verdict["level"] == "warning"
    assert said(verdict) == (
        "1 incident in 2,400 steps; the last: non-finite at step 1,900, first in blocks.7.mlp.fc2; "
        "1 step skipped; no alarm for 499 steps since step 1,900; green after 500."
    )


@pytest.mark.parametrize(
    ("changes", "restless", "headline"),
    [
        ({}, None, "In trouble"),
        ({"closed": 1940, "helped": False}, None, "Not healed"),
        ({"closed": 1940, "helped": True}, 2100, "Out of its band"),
    ],
)
def test_red(changes: dict[str, Any], restless: int | None, headline: str) -> None:
    verdict = story.verdict([record(**changes)], END, restless)
    assert (verdict["level"], verdict["headline"]) == ("bad", headline)


def test_the_windows_count_what_the_kept_actions_do_not() -> None:
    verdict = story.verdict([record(closed=1940, helped=True)], END, None, {"skipped": 7, "clipped": 2, "overflows": 9})
    assert "; 7 steps skipped, 2 steps clipped; no alarm" in said(verdict)
    # An old log, or a window that has not been written yet.
    assert "; 1 step skipped; no alarm" in said(story.verdict([record(closed=1940, helped=True)], END, None, {}))


def test_what_a_scaler_skips_by_itself_is_no_trouble() -> None:
    verdict = story.verdict([], END, None, {"overflows": 3})
    assert verdict["level"] == "good" and "GradScaler skipped 3 steps by itself" in said(verdict)


def test_no_incident_but_out_of_its_band_is_red() -> None:
    verdict = story.verdict([], END, 2100)
    assert verdict["level"] == "bad" and "since step 2,100" in said(verdict)


def test_the_last_event_of_an_incident_counts_and_its_first_places_it() -> None:
    first = synthetic.incident(2, 50, "sudden", "head")
    written = [
        event(1, {"event": "opened", "incident": first, "message": "began", "step": 50}),
        event(2, {"event": "closed", "incident": {**first, "closed": 90, "helped": True}, "message": None, "step": 90}),
        event(3, {"event": "notice", "incident": None, "message": "back to full speed", "step": 95}),
    ]
    (merged,) = events.incidents(written, {})
    assert merged["helped"] is True and merged["time"] == 1.0 and merged["messages"] == ["began"]
    assert events.notices(written) == [{"step": 95, "first": 95, "times": 1, "message": "back to full speed"}]


@pytest.mark.parametrize("text", [b"{not json \xff", b"[]", b"3", b"", "{"])
def test_what_is_not_an_event_is_left_out(text: bytes | str) -> None:
    assert story.parse_event(1, 0.0, 0, text) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"number": "x"},
        {"number": 1, "blame": "none", "actions": [1, None, {"outcomes": 3}, {"decision": 4}]},
        {"number": 1, "blame": [{}], "step": None},
        {"number": 1, "step": "inf", "optimizer": []},
    ],
)
def test_a_malformed_incident_breaks_nothing(broken: dict[str, Any]) -> None:
    records = events.incidents([event(1, {"event": "opened", "incident": broken, "step": 1})], {})
    story.verdict(records, END)


@pytest.mark.parametrize(
    ("form", "words"), [("sudden", "find out what changed head"), ("cold-start", "look at how head")]
)
def test_a_fresh_layer_has_not_been_changed_by_anybody(form: str, words: str) -> None:
    made = synthetic.incident(1, 1, form, "head", remedies=["reinitialize"], closed=20, helped=True)
    made["actions"][0]["decision"] |= {"cause": "layer"}
    assert words in telling.advice(made)


def kept(**changes: Any) -> dict[str, Any]:
    made = synthetic.incident(1, 40, "overshoot", "head", remedies=["backoff"], closed=90, helped=True)
    made["actions"][0]["decision"] |= {"cause": "learning rate"}
    (told,) = events.incidents([event(1, {"event": "closed", "incident": {**made, **changes}, "step": 90})], {})
    return told


def rated(**last: float) -> series.Timeline:
    """A run of 2,000 steps whose rate is lowered at step 40, with what its last windows know of the rate."""
    steps = np.arange(9.0, 2000.0, 10.0)
    table = np.full((len(steps), len(COLUMNS)), np.nan)
    for name, value in {"norm_peak": 1.0, "limit": 9.0, "lr_factor": 1.0, "rate": 0.02, "rate_good": 0.0}.items():
        table[:, COLUMNS.index(name)] = value
    table[:, 0], table[:, 1] = steps, steps - 9.0
    for name, value in last.items():
        table[4:, COLUMNS.index(name)] = value
    return series.lay_out(np.arange(len(steps)), np.zeros(len(steps)), table)


@pytest.mark.parametrize(
    ("good", "words", "level", "headline"),
    [
        (
            0.02,
            "far below 0.02, with which the run has learned: it may learn slowly",
            "warning",
            "T",
        ),
        (0.0, "not known to be a rate with which the run learns: it may learn slowly", "warning", "T"),
        (2e-5, "the run has learned with up to 2e-5, so it goes on learning", "good", "R"),
    ],
)
def test_a_rate_that_is_held_far_below_the_schedule_is_said_so(
    good: float, words: str, level: str, headline: str
) -> None:
    run = rated(lr_factor=5e-4, rate=1e-5, rate_good=good, rate_bad=0.01)
    found = story.of_run([kept()], [run], [])
    (told,) = (one["words"][0]["text"] for one in found["answers"] if one["question"] == "What next?")
    assert (
        "lowered to 1e-5 at step 40 and is still there: that is 2,000 times below the schedule" in told
        and words in told
    )
    assert "nothing for this run" not in told and "next time choose a lower learning rate" in told
    assert found["level"] == level and found["headline"][0] == headline


def test_a_rate_that_is_nearly_the_schedules_again_is_not_spoken_of() -> None:
    for changes in ({"lr_factor": 0.5, "rate_bad": 0.01}, {"lr_factor": 5e-4}):
        found = story.of_run([kept()], [rated(**changes)], [])
        assert found["headline"] == "Recovered" and "nothing for this run" in found["answers"][-1]["words"][0]["text"]


def test_of_a_rate_in_its_cool_down_is_told_what_was_held_before() -> None:
    run = rated(lr_factor=5e-4, rate=1e-5, rate_good=2e-5, rate_bad=0.01)
    cooled = np.linspace(1.0, 0.01, 40)
    run.table[-40:, COLUMNS.index("cooled")] = cooled
    for name in ("lr_factor", "rate"):
        run.table[-40:, COLUMNS.index(name)] *= cooled
    (told,) = (
        one["words"][0]["text"]
        for one in story.of_run([kept()], [run], [])["answers"]
        if one["question"] == "What next?"
    )
    assert "is still there: that is 2,000 times below the schedule" in told and "halved" not in told
    assert "so it goes on learning" in told
