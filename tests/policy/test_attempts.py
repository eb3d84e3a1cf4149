"""Treatments are tried in their order, while the budget lasts."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.policy import Case, Trial
from lightning_gradguard.policy.act import EVERY, Act
from lightning_gradguard.policy.attempts import Attempts
from lightning_gradguard.policy.ladder import SLOWER, UNDER_WAY
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
    assert attempts.treat(Cause.START, "x", dataclasses.replace(case, trial=trial, foretold=False)).again


@pytest.mark.parametrize(("ratio", "again"), [(0.09, False), (0.11, True)])
def test_what_was_drawn_anew_and_lost_by_small_updates_is_drawn_once_more(ratio: float, again: bool) -> None:
    trial = Trial(Cause.LOSS.value, ("rollback", "initialize", "backoff"), 0)
    attempts, known = Attempts(20), taught(calm(100))
    known.updates.accept(ratio)
    case = Case(known, EVERY, start=True)
    attempts.treat(Cause.LOSS, "x", case)
    trial.observe(1.0)
    said = attempts.treat(Cause.START, "x", dataclasses.replace(case, trial=trial))
    assert said.again is again and (Act.INITIALIZE in said.remedies) is not again


def test_what_drew_well_once_is_tried_at_a_lower_rate_where_what_was_drawn_anew_takes_no_batch() -> None:
    trial = Trial(Cause.START.value, ("rollback", "initialize", "backoff"), 0)
    attempts = Attempts(20)
    case = Case(CASE.baseline, EVERY, start=True, passed=True)
    attempts.treat(Cause.START, "x", case)
    said = attempts.treat(Cause.START, "x", dataclasses.replace(case, trial=trial))
    assert not said.again and Act.BACKOFF in said.remedies and Act.INITIALIZE not in said.remedies


def test_a_sick_copy_speaks_for_an_older_one_and_not_against_the_rate() -> None:
    def said(first: float) -> tuple[str, ...]:
        trial = Trial(Cause.RATE.value, ("rollback", "backoff"), 0, before=calm(64, level=0.3), learned=True)
        for loss in [first, *calm(10, level=3.0)]:
            trial.observe(loss)
        return tuple(Attempts(20).treat(Cause.RATE, "x", Case(CASE.baseline, EVERY, trial=trial)).remedies)

    assert said(3.0) == (Act.SKIP, Act.ROLLBACK) and said(0.3) == (Act.SKIP, Act.ROLLBACK, Act.BACKOFF)


def test_an_odd_number_of_the_optimizer_is_mended_before_anything_else_and_to_be_out_of_the_trouble_is_enough() -> None:
    attempts = Attempts(20)
    odd = Case(CASE.baseline, EVERY, start=True, odd="momentum=0.999: each update repeats the last 1,000 gradients")
    first = attempts.treat(Cause.RATE, "the run has lost what it had", odd)
    assert (first.remedies, first.cause, first.reason, first.last) == (
        (Act.SKIP, Act.ROLLBACK, Act.TUNE),
        Cause.SETTINGS.value,
        odd.odd,
        True,
    )
    second = attempts.treat(Cause.RATE, "", odd)
    assert second.remedies == (Act.SKIP, *SLOWER) and not second.last
    assert Attempts(20).treat(Cause.STALE, "", odd).remedies == (Act.SKIP, Act.ROLLBACK, Act.CLEAR)
