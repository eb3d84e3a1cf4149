"""Cause, treatments and what became of them, as the console, the report's lines and TensorBoard's text tell them."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import pytest

from lightning_gradguard.diagnostics import Console, decode, wording
from lightning_gradguard.diagnostics.console import LONGEST
from lightning_gradguard.diagnostics.markdown import incident_markdown
from lightning_gradguard.records import (
    Action,
    Decision,
    Incident,
    Outcome,
    TrialRecord,
    Verdict,
    incident_from_json,
    to_json,
)
from lightning_gradguard_tensorboard.answers import answers
from lightning_gradguard_tensorboard.pieces import plain_text
from tests.diagnostics.examples import HOSTILE, incident

REDRAW, LOWER = ("reinitialize",), ("rollback", "backoff")
TAKEN_BACK = TrialRecord("layer", REDRAW, 42, 106, "taken back", 0.25, 6.125, 6.5)
KEPT = TrialRecord("learning rate", LOWER, 106, 170, "kept", 0.25, 6.125, 0.24)


def act(
    step: int, *remedies: str, done: bool = True, cause: str = "unknown", reason: str = "why", **more: Any
) -> Action:
    """Return an alarming step on which these remedies were applied, or would have been."""
    outcomes = tuple(
        Outcome(name, True, f"did {name}", ("conv2",) if name == "reinitialize" else ()) for name in remedies
    )
    verdict = Verdict("sudden", "spike", 310.0, 10.0, "the norm leapt")
    return Action(step, verdict, Decision(remedies, reason, cause, **more), outcomes if done else ())


FIRST_AID = act(40, "skip", reason="first aid")
REDRAWN = act(42, "skip", *REDRAW, cause="layer", reason="conv2 is at fault")
LOWERED = act(106, "skip", *LOWER, cause="learning rate")
LOWERED = dataclasses.replace(LOWERED, verdict=Verdict("divergence", "trial", 6.5, 6.125, "no better", examine=True))
RESIGNED = act(170, "skip", cause="learning rate", reason="first aid is all that is left", resign=True)
REGIME = act(63, "skip", cause="new regime", reason="what has come is no accident")


def case(
    *actions: Action, trials: tuple[TrialRecord, ...] = (), helped: bool | None = None, closed: int | None = 170
) -> Incident:
    return incident(form="sudden", actions=actions, alarms=len(actions), trials=trials, helped=helped, closed=closed)


KEPT_AT_ONCE = case(
    FIRST_AID,
    REDRAWN,
    trials=(dataclasses.replace(TAKEN_BACK, outcome="kept", closed=58, after=0.24),),
    helped=True,
    closed=58,
)
SECOND_KEPT = case(FIRST_AID, REDRAWN, LOWERED, trials=(TAKEN_BACK, KEPT), helped=True)
ALL_TAKEN_BACK = case(
    FIRST_AID,
    REDRAWN,
    LOWERED,
    RESIGNED,
    trials=(TAKEN_BACK, dataclasses.replace(KEPT, outcome="taken back", after=5.5)),
    helped=False,
)
CALM = case(FIRST_AID, closed=61)
ANEW = case(FIRST_AID, REGIME, closed=63)
WATCHED = case(
    act(40, "skip", done=False),
    act(42, "skip", *REDRAW, done=False, cause="layer"),
    act(43, "skip", *LOWER, done=False, cause="layer"),
    act(44, "skip", done=False, cause="layer", resign=True),
    closed=90,
)
OLD: dict[str, Any] = {
    **{k: v for k, v in to_json(incident(closed=52, helped=True)).items() if k != "trials"},
    "actions": [
        {
            **to_json(incident().actions[0]),
            "decision": {"remedies": ["skip"], "reason": "x", "factor": 0.5, "permanent": True, "exhausted": False},
        }
    ],
}


def told(one: Incident) -> str:
    return "\n".join([wording.result(one), *(f"{name}: {text}" for name, text in wording.findings(one))])


@pytest.fixture
def console(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "lightning_gradguard")
    return Console()


def test_kept() -> None:
    assert told(KEPT_AT_ONCE) == (
        "calm again after 18 steps, helped\n"
        "cause: layer conv2\n"
        "tried: repaired the layer at step 42: kept at step 58, the loss is lower than in the trouble "
        "(loss before the trouble 0.25, in it 6.12, at the end 0.24)"
    )


def test_the_first_taken_back_and_the_second_kept() -> None:
    text = told(SECOND_KEPT)
    assert text.startswith("calm again after 130 steps, helped\ncause: updates that are too large: the learning rate\n")
    assert (
        "repaired the layer at step 42: taken back at step 106, the loss was no better than in the trouble "
        "(loss before the trouble 0.25, in it 6.12, at the end 6.5)" in text
    )
    assert "rolled back to a good snapshot and lowered the learning rate at step 106: kept at step 170" in text
    assert "left" not in text


def test_all_taken_back_leaves_first_aid() -> None:
    text = told(ALL_TAKEN_BACK)
    assert text.startswith("given up after 130 steps, did not help\nsuspected cause: updates")
    assert "taken back at step 106, the loss was no better than in the trouble" in text
    assert "taken back at step 170, there was trouble again (sudden)" in text
    assert text.endswith("left to try: only skipping and clipping: the run goes on as you wrote it")


@pytest.mark.parametrize(
    ("trouble", "after", "why"),
    [
        (6.0, 5.5, "the loss was not back where it had been"),
        (6.0, 6.0, "the loss was no better than in the trouble"),
        (6.0, 0.2, "the loss did not prove a cure"),
        (6.0, math.nan, "no finite loss was seen after it"),
        (math.nan, 5.5, "the loss was not back where it had been"),
    ],
)
def test_why_a_trial_that_ran_to_its_end_was_taken_back(trouble: float, after: float, why: str) -> None:
    record = dataclasses.replace(TAKEN_BACK, trouble=trouble, after=after)
    assert wording.became(record, ALL_TAKEN_BACK) == f"taken back at step 106, {why}"


def test_first_aid_only_is_calm_and_neither_help_nor_failure() -> None:
    assert (
        told(CALM) == "calm again after 21 steps, only skipped\n"
        "cause: only step 40 (batch 7) was bad; skipping it was enough"
    )
    assert wording.state(CALM) == "calm"


def test_a_new_regime_is_said() -> None:
    text = told(ANEW)
    assert "learned anew after 23 steps" in text and "cause: data, loss or task have changed for good" in text
    assert "calm" not in text and "help" not in text
    assert wording.state(dataclasses.replace(ANEW, helped=False, trials=(TAKEN_BACK,))) == "anew"


def test_watching_tells_what_would_have_been_done() -> None:
    text = told(WATCHED)
    assert "no more alarms after 50 steps, only watched" in text and "cause: layer conv2" in text
    assert (
        "would have skipped the step; then repaired the layer; then rolled back to a good snapshot and lowered" in text
    )
    assert "goes on as you wrote it" not in text and "helped" not in text and "tried" not in text
    anew = dataclasses.replace(WATCHED, actions=(*WATCHED.actions, dataclasses.replace(REGIME, outcomes=())))
    assert (
        wording.state(anew) == "watched" and "would have" in told(anew) and "learned anew what is healthy" in told(anew)
    )
    markdown = incident_markdown(WATCHED)
    assert "| would have skipped the step and repaired the layer: why |" in markdown


def test_an_old_journal_is_told_as_before() -> None:
    for old in (incident_from_json(OLD), decode.decode(Incident, OLD)):
        assert told(old) == "calm again after 12 steps, helped"
        assert "What was tried" not in incident_markdown(old)


def test_a_journal_keeps_the_trials() -> None:
    for one in (KEPT_AT_ONCE, SECOND_KEPT, ALL_TAKEN_BACK, CALM, ANEW, WATCHED):
        assert incident_from_json(to_json(one)) == decode.decode(Incident, to_json(one)) == one


@pytest.mark.parametrize("trouble", [0.23, math.nan])
def test_what_is_kept_without_a_better_loss_has_not_helped(trouble: float) -> None:
    """The loss is where it was before the trouble, and it may never have left it."""
    record = dataclasses.replace(KEPT, trouble=trouble, after=0.24)
    text = told(case(REDRAWN, trials=(record,), helped=True))
    assert "helped" not in text and "calm again after 130 steps, what was done is kept" in text
    assert "the loss is no higher than before the trouble" in text


def test_a_loss_that_was_lost_and_is_known_again_has_helped() -> None:
    verdict = Verdict("non-finite", "non-finite", math.nan, math.inf, "NaN")
    action = dataclasses.replace(REDRAWN, verdict=verdict)
    record = dataclasses.replace(KEPT, trouble=math.nan)
    text = told(case(action, trials=(record,), helped=True))
    assert "helped" in text and "in it" not in text and "loss before the trouble" in text
    assert not wording.improved(dataclasses.replace(record, after=math.nan), case(action))


def test_a_treatment_without_a_loss_to_measure_it_by_is_said_to_be_so() -> None:
    nan = dict.fromkeys(("before", "trouble", "after"), math.nan)
    text = told(case(LOWERED, trials=(dataclasses.replace(KEPT, outcome="calm", **nan),)))
    assert "left as it is at step 170, no loss was known to measure it by" in text and "(no loss" not in text
    assert "helped" not in text and "first aid" not in text


def test_a_budget_that_is_spent() -> None:
    spent = act(150, "skip", reason="100 steps in a row were held", exhausted=True)
    given_up = case(FIRST_AID, spent, helped=False)
    assert "left to try: nothing: 100 steps in a row were skipped" in told(given_up)
    stopped = told(dataclasses.replace(given_up, stopped=170))
    assert "stopped: at step 170: 100 steps in a row were skipped" in stopped and "left to try" not in stopped


def test_what_is_left_to_try_is_said_only_while_it_matters() -> None:
    over = case(FIRST_AID, RESIGNED)
    assert wording.state(over) == "calm" and "left to try" not in told(over)
    assert "left to try" in told(dataclasses.replace(over, closed=None))
    assert "left to try" in told(dataclasses.replace(over, helped=False))


def test_no_layer_is_blamed_where_only_a_step_was_bad() -> None:
    alone = dataclasses.replace(CALM, blame=())
    sentence = "only step 40 (batch 7) was bad; no layer is blamed, since skipping it was enough"
    assert told(alone).endswith(f"cause: {sentence}")
    where = next(one["words"] for one in answers([to_json(alone)], "", "") if one["question"] == "Where")
    assert plain_text(where) == sentence, "the same words wherever it is told"


def test_a_treatment_on_trial_when_the_run_was_stopped_is_told() -> None:
    stopped = dataclasses.replace(case(FIRST_AID, REDRAWN, helped=False), stopped=170)
    assert "repaired the layer (on trial when the run was stopped)" in wording.deeds(stopped)
    assert "when the run was stopped" not in wording.deeds(case(FIRST_AID, REDRAWN, helped=False))


def test_an_open_incident_tells_what_is_on_trial() -> None:
    going = case(FIRST_AID, REDRAWN, closed=None)
    assert "on trial: repaired the layer at step 42" in told(going)
    going = case(FIRST_AID, REDRAWN, LOWERED, trials=(TAKEN_BACK,), closed=None)
    assert "taken back at step 106" in told(going)
    assert "on trial: rolled back to a good snapshot and lowered the learning rate at step 106" in told(going)
    looking = act(41, "skip", "rollback", cause="layer", look=True)
    assert "on trial" not in told(case(FIRST_AID, looking, closed=None)), "going back to measure treats nothing"


def test_the_console_tells_it_in_one_line_each(console: Any, caplog: pytest.LogCaptureFixture) -> None:
    console.incident(case(FIRST_AID, closed=None), "opened")
    console.incident(case(FIRST_AID, REDRAWN, closed=None), "acted")
    console.incident(case(FIRST_AID, REDRAWN, LOWERED, trials=(TAKEN_BACK,), closed=None), "acted")
    console.incident(case(FIRST_AID, REDRAWN, LOWERED, RESIGNED, trials=(TAKEN_BACK,), closed=None), "acted")
    console.incident(SECOND_KEPT, "closed")
    opened, tried, again, resigned, closed = caplog.messages
    assert opened.endswith("; skipped the step") and tried.endswith("; on trial: repaired the layer at step 42")
    assert "tried: repaired the layer at step 42: taken back" in again and "on trial: rolled back" in again
    assert resigned.endswith(
        "1, step 170: 4 alarming steps so far; left to try: only skipping and clipping: the run goes on as you wrote it"
    )
    assert "closed at step 170: calm again after 130 steps, helped; cause: updates" in closed
    assert closed.count("tried: ") == 1, "the first was told when it was taken back"
    assert all(len(message) <= LONGEST for message in caplog.messages)


@pytest.mark.parametrize("one", [KEPT_AT_ONCE, CALM, WATCHED, ALL_TAKEN_BACK, ANEW])
def test_who_saw_the_beginning_sees_the_end(console: Any, caplog: pytest.LogCaptureFixture, one: Incident) -> None:
    console.incident(dataclasses.replace(one, closed=None), "opened")
    console.incident(one, "closed")
    assert {record.levelname for record in caplog.records} == {"WARNING"} and len(caplog.records) == 2


def test_the_console_says_at_once_what_would_have_been_done(console: Any, caplog: pytest.LogCaptureFixture) -> None:
    console.incident(dataclasses.replace(WATCHED, closed=None), "opened")
    assert "nothing was changed; only watched: would have skipped the step; then repaired" in caplog.messages[0]


def test_markdown_has_a_table_of_treatments() -> None:
    text = incident_markdown(ALL_TAKEN_BACK)
    assert "**Suspected cause:** updates that are too large: the learning rate." in text
    assert "**Left to try:** only skipping and clipping: the run goes on as you wrote it." in text
    assert "| treatment | for | loss before | in the trouble | at the end | what became of it |" in text
    assert (
        "| **step 42**: repaired the layer | a bad layer | 0.25 | 6.12 | 6.5 "
        "| taken back at step 106, the loss was no better than in the trouble |" in text
    )
    assert "**New regime:** what is healthy is learned anew from here on." in incident_markdown(ANEW)


def test_hostile_words_stay_text() -> None:
    record = dataclasses.replace(TAKEN_BACK, cause=HOSTILE, treatment=(HOSTILE,), outcome=HOSTILE)
    action = dataclasses.replace(REDRAWN, decision=Decision((HOSTILE,), HOSTILE, HOSTILE))
    outcome = Outcome("reinitialize", True, HOSTILE, (HOSTILE,))
    for one in (
        case(action, trials=(record,), helped=False),
        case(dataclasses.replace(action, outcomes=()), closed=None),
        case(dataclasses.replace(REDRAWN, outcomes=(outcome,))),
    ):
        assert told(one).replace("\n", "").isprintable()
        text = incident_markdown(one)
        assert "<script>" not in text and "\x1b" not in text and "\n# d" not in text


def test_a_value_just_above_its_limit_is_not_one_time_the_limit() -> None:
    verdict = Verdict("sudden", "spike", 2.43, 2.42, "norm 2.43 is 16 x the typical 0.15", ())
    assert (
        wording.evidence(dataclasses.replace(FIRST_AID, verdict=verdict)) == "norm 2.43, just above the limit of 2.42"
    )


def test_a_loss_that_was_no_worse_in_the_trouble_is_explained() -> None:
    told = wording.levels(dataclasses.replace(KEPT, before=0.5, trouble=0.4, after=0.3), case(FIRST_AID))
    assert told == (
        "loss before the trouble 0.5, in it 0.4 (not higher: the gradient told of the trouble, the loss did not yet), "
        "at the end 0.3"
    )
