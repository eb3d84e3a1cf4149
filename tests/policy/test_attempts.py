"""Treatments are tried in their order, while the budget lasts."""

from __future__ import annotations

import dataclasses

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.policy import Case, Trial
from lightning_gradguard.policy.act import EVERY, Act
from lightning_gradguard.policy.attempts import Attempts
from lightning_gradguard.policy.ladder import UNDER_WAY
from tests.builders import calm, taught

CASE = Case(taught(calm(100)), EVERY)


def test_each_treatment_of_a_cause_comes_once_and_then_first_aid() -> None:
    attempts = Attempts(20)
    said = [attempts.treat(Cause.UNKNOWN, "x", CASE) for _ in range(3)]
    assert [d.remedies for d in said[:2]] == [(Act.SKIP, *row) for row in UNDER_WAY[Cause.UNKNOWN]]
    assert [d.last for d in said[:2]] == [False, True] and said[2].resign and said[2].remedies == (Act.SKIP,)


def test_what_cannot_be_done_is_passed_over_and_costs_nothing() -> None:
    attempts = Attempts(20)
    said = attempts.treat(Cause.LAYER, "x", Case(CASE.baseline, {Act.SKIP, Act.BACKOFF}))
    assert Act.BACKOFF in said.remedies and attempts.trials == 1


def test_the_budget_is_of_the_whole_run() -> None:
    attempts = Attempts(1)
    assert not attempts.treat(Cause.RATE, "x", CASE).resign
    attempts.forget()
    assert attempts.treat(Cause.UNKNOWN, "x", CASE).resign


def test_while_a_rate_is_on_trial_the_next_answer_is_a_lower_one() -> None:
    trial = Trial(Cause.RATE.value, ("rollback", "backoff"), 0)
    trial.observe(1.0)
    said = Attempts(20).treat(Cause.UNKNOWN, "x", Case(CASE.baseline, EVERY, trial=trial))
    assert said.again and said.cause == Cause.RATE.value and trial.descents == 1


def test_before_any_update_was_made_no_rate_is_to_blame() -> None:
    trial = Trial(Cause.LOSS.value, ("rollback", "initialize", "backoff"), 0)
    attempts = Attempts(20)
    case = Case(CASE.baseline, EVERY, start=True)
    attempts.treat(Cause.LOSS, "x", case)
    said = attempts.treat(Cause.START, "x", dataclasses.replace(case, trial=trial))
    assert not said.again and said.cause == Cause.LOSS.value and Act.INITIALIZE in said.remedies
    trial.observe(None)
    assert attempts.treat(Cause.START, "x", dataclasses.replace(case, trial=trial)).again
