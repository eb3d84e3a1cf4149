"""Helped is said where a run is out of the trouble and has something left, not where it is only out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from lightning_gradguard.policy import Trial
from lightning_gradguard.policy.helped import helped
from lightning_gradguard.records import TrialRecord
from tests.builders import calm

UNTRAINED = 2.31


def ended(level: float, *, learned: bool, spread: float = 0.02) -> Trial:
    """A trial at its end."""
    trial = Trial("learning rate", ("rollback", "backoff"), 5, before=[9.9], trouble=[1e6], learned=learned)
    for loss in calm(16, level=level, spread=spread, seed=3):
        trial.observe(loss)
    return trial


@pytest.mark.parametrize(
    ("before", "after", "better"),
    [(0.3, 0.3, True), (0.3, 0.2, True), (0.3, 1.2, True), (0.3, 1.5, False), (1.23, 2.31, False), (1.23, 2.0, False)],
)
def test_a_run_that_had_learned_must_be_back_or_have_half_of_it(before: float, after: float, better: bool) -> None:
    usual = calm(64, level=before, spread=0.02, seed=1)
    assert helped(ended(after, learned=True), usual, UNTRAINED) is better


def test_chance_is_no_difference_whatever_had_been_learned() -> None:
    usual = calm(64, level=2.3, spread=0.2, seed=1)
    assert helped(ended(2.31, learned=True, spread=0.2), usual, math.nan)
    assert not helped(ended(4.0, learned=True, spread=0.2), usual, math.nan)


@pytest.mark.parametrize(
    ("before", "after", "better"),
    [
        ([UNTRAINED], 1.9, True),
        ([UNTRAINED], 2.3, False),
        # A classifier of ten whose units have died has come to chance, which is below its first loss.
        ([2.48], 2.3026, False),
        ([UNTRAINED], 2.46, False),
        (calm(9, level=2.3, spread=0.02, seed=2), 1.9, True),
        (calm(9, level=2.3, spread=0.02, seed=2), 2.3, False),
        ([20.0], 243.0, False),
        ([75.0], 235.0, False),
        # The second of two was made by an update, and is no loss of untrained weights.
        ([2.3, 80.0, 90.0, 80.0], 2.46, False),
    ],
)
def test_a_run_that_had_learned_nothing_must_be_below_its_untrained_losses(
    before: Sequence[float], after: float, better: bool
) -> None:
    assert helped(ended(after, learned=False), before, math.nan) is better


@pytest.mark.parametrize(("outcome", "better"), [("taken back", False), ("calm", True)])
def test_what_ends_worse_than_what_was_taken_back_is_no_help(outcome: str, better: bool) -> None:
    first = TrialRecord("learning rate", ("rollback", "backoff"), 5, 69, outcome, 2.3, 1e6, 0.936)
    assert helped(ended(1.65, learned=False), [UNTRAINED], math.nan, [first]) is better
    assert helped(ended(0.5, learned=False), [UNTRAINED], math.nan, [first])


def test_where_nothing_but_trouble_is_known_to_be_out_of_it_is_enough() -> None:
    assert helped(ended(2.5, learned=False), [], math.nan)
