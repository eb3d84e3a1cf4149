"""The table of causes and treatments."""

from __future__ import annotations

import pytest

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.policy.act import ON_TRIAL
from lightning_gradguard.policy.ladder import REDRAW, START, UNDER_WAY, treatments

ROWS = [row for table in (START, UNDER_WAY) for rows in table.values() for row in rows]


def test_a_run_under_way_has_nothing_drawn_anew() -> None:
    assert not any("initialize" in row for rows in UNDER_WAY.values() for row in rows)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("cause", [Cause.BATCH, Cause.REGIME])
def test_what_no_treatment_can_help_has_none(cause: Cause, start: bool) -> None:
    assert treatments(cause, start=start) == ()


def test_the_same_causes_are_treated_at_the_start_and_later_but_for_the_scale_of_outputs() -> None:
    """A loss that is not finite for the outputs of a fresh network may be so by their scale; later it is the code."""
    assert START.keys() == UNDER_WAY.keys() | {Cause.LOSS}


def test_every_treatment_is_one_that_goes_on_trial_and_that_the_guard_has() -> None:
    have = {remedy.name for remedy in default_remedies()}
    assert {name for row in ROWS for name in row} <= ON_TRIAL & have


@pytest.mark.parametrize("table", [START, UNDER_WAY])
def test_no_treatment_is_tried_twice_for_one_cause(table: dict[Cause, tuple[tuple[str, ...], ...]]) -> None:
    for rows in table.values():
        # A network that is drawn once more is another one, and a smaller one.
        once = [row for row in rows if row != REDRAW]
        assert rows and len(set(once)) == len(once)


def test_whoever_lowers_the_rate_or_draws_anew_goes_back_first() -> None:
    """On weights that were lost no rate does any good."""
    for row in ROWS:
        if {"backoff", "initialize"} & set(row):
            assert row[0] == "rollback"
