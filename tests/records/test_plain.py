"""Records: frozen, and written to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard import records
from lightning_gradguard.records import (
    Action,
    Decision,
    Form,
    Incident,
    Outcome,
    Suspect,
    TrialRecord,
    Verdict,
    incident_from_json,
    to_json,
)

FLOATS = st.floats(allow_nan=False)
TEXT = st.text(max_size=10)
MAYBE = st.one_of(st.none(), FLOATS)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
FORMS = st.sampled_from(get_args(Form))
VERDICTS = st.builds(Verdict, FORMS, TEXT, FLOATS, FLOATS, TEXT, TEXTS, st.booleans(), st.booleans())
DECISIONS = st.builds(Decision, TEXTS, TEXT, TEXT, *[st.booleans()] * 5)
OUTCOMES = st.builds(Outcome, TEXT, st.booleans(), TEXT, TEXTS, st.floats(0, 1))
ACTIONS = st.builds(Action, st.integers(0), VERDICTS, DECISIONS, st.lists(OUTCOMES, max_size=2).map(tuple))
BLAMES = st.builds(Suspect, TEXT, FLOATS, TEXT, MAYBE, MAYBE, MAYBE)
TRIALS = st.builds(TrialRecord, TEXT, TEXTS, st.integers(0), st.integers(0), TEXT, FLOATS, FLOATS, FLOATS)
INCIDENTS = st.builds(
    Incident,
    *(st.integers(0), st.integers(0), st.integers(0), FORMS),
    st.lists(ACTIONS, max_size=2).map(tuple),
    st.lists(BLAMES, max_size=2).map(tuple),
    *(st.one_of(st.none(), st.integers(0)), st.integers(0), st.one_of(st.none(), st.integers(0))),
    st.one_of(st.none(), st.booleans()),
    st.lists(TRIALS, max_size=2).map(tuple),
)


@given(INCIDENTS)
def test_an_incident_survives_strict_json(incident: Incident) -> None:
    text = json.dumps(to_json(incident), allow_nan=False)
    assert incident_from_json(json.loads(text)) == incident


def test_levels_that_nobody_knew_stay_unknown() -> None:
    trial = TrialRecord("unknown", ("rollback",), 3, 19, "calm", math.nan, math.nan, math.nan)
    text = json.dumps(to_json(Incident(1, 0, 3, "sudden", trials=(trial,))), allow_nan=False)
    (found,) = incident_from_json(json.loads(text)).trials
    assert found.treatment == ("rollback",) and math.isnan(found.before + found.trouble + found.after)


def test_a_journal_of_an_older_version_can_be_read() -> None:
    """It held a factor on the rate with each decision, how grave each verdict was, and no trials."""
    verdict = Verdict("rate", "rate-leap", 1.0, 0.1, "why")
    incident = Incident(1, 0, 3, "rate", (Action(3, verdict, Decision(("skip", "backoff"), "why")),))
    old = to_json(incident)
    del old["trials"]
    old["actions"][0]["decision"] = {
        "remedies": ["skip", "backoff"],
        "reason": "why",
        "factor": 0.1,
        "permanent": True,
        "exhausted": False,
    }
    old["actions"][0]["verdict"]["grave"] = True
    assert incident_from_json(old) == incident


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_what_json_lacks_becomes_text_that_float_reads_back(value: float, text: str) -> None:
    assert to_json({"a": [value]}) == {"a": [text]}
    assert repr(float(text)) == repr(value)


def test_arrays_and_nested_records_are_written() -> None:
    assert to_json(np.array([1.0, math.inf])) == [1.0, "inf"]
    assert to_json(Decision(("skip",), "why"))["remedies"] == ["skip"]


@pytest.mark.parametrize(("value", "limit"), [(math.nan, 1), (1, math.nan), (math.inf, 1), (1, 0), (1, math.inf)])
def test_what_is_not_finite_is_the_worst_excess(value: float, limit: float) -> None:
    assert Verdict("sudden", "x", value, limit, "why").excess == math.inf


def test_an_incident_names_culprit_and_remedies_that_were_applied() -> None:
    verdict = Verdict("sudden", "x", 2.0, 1.0, "why")
    outcomes = (Outcome("skip", True, "x"), Outcome("rollback", False, "x"), Outcome("skip", True, "x"))
    incident = Incident(
        1, 0, 0, "sudden", (Action(0, verdict, Decision((), "x"), outcomes),), (Suspect("a", 2.0, "x"),)
    )
    assert incident.remedies == ("skip",) and incident.culprit == "a"
    assert Incident(1, 0, 0, "sudden").culprit is None


def test_every_record_is_frozen() -> None:
    kinds = [v for v in vars(records).values() if dataclasses.is_dataclass(v)]
    assert len(kinds) >= 8
    for kind in kinds:
        params: Any = kind.__dataclass_params__  # type: ignore[union-attr]
        assert params.frozen, kind
