"""A treatment on trial: kept, taken back, or called calm where there is nothing to measure by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.policy import Trial
from lightning_gradguard.policy.trial import MOST_DESCENTS, PATIENT, WINDOW, WINDOWS
from tests.builders import calm, same, through_a_file

MOST = WINDOW * WINDOWS


def noisy(level: float, count: int, *, spread: float = 0.05, seed: int = 0) -> list[float]:
    return calm(count, level=level, spread=spread, seed=seed)


def outcome(trial: Trial, losses: Sequence[float | None], *, large: bool = False) -> tuple[str, int]:
    """Return how the trial ends, and after how many steps; an empty string if it goes on."""
    for step, loss in enumerate(losses, 1):
        trial.observe(loss)
        if said := trial.verdict(large=large):
            return said, step
    return "", len(losses)


def under_way(
    before: float = 0.3, trouble: float = 2.0, treatment: Sequence[str] = ("rollback",), **more: Any
) -> Trial:
    """A trial in a run that had learned."""
    lost = noisy(before, 64, seed=1), noisy(trouble, 16, seed=2)
    return Trial("unknown", treatment, 100, before=lost[0], trouble=lost[1], learned=True, **more)


def fresh(treatment: Sequence[str] = ("rollback", "backoff"), **more: Any) -> Trial:
    """A trial in a run that had learned nothing."""
    return Trial("learning rate", treatment, 5, before=[2.3], trouble=noisy(9.0, 8), learned=False, **more)


def test_a_loss_that_is_where_it_was_keeps_the_treatment_after_one_window() -> None:
    assert outcome(under_way(), noisy(0.3, MOST)) == ("kept", WINDOW)
    assert outcome(under_way(), noisy(0.25, MOST)) == ("kept", WINDOW)


SLOWER = ("rollback", "backoff")


def test_a_treatment_that_made_no_difference_is_taken_back_after_four() -> None:
    assert outcome(under_way(treatment=SLOWER), noisy(2.0, MOST)) == ("taken back", MOST)


def test_one_that_made_it_worse_is_taken_back_at_once() -> None:
    assert outcome(under_way(treatment=SLOWER), noisy(4.0, MOST)) == ("taken back", WINDOW)


def test_one_that_made_it_better_without_curing_it_is_kept_in_the_end() -> None:
    assert outcome(under_way(), noisy(1.0, MOST)) == ("kept", MOST)


@pytest.mark.parametrize("shift", [-5.0, -1.0, 0.0])
def test_the_sign_of_the_loss_does_not_matter(shift: float) -> None:
    def shifted(values: list[float]) -> list[float]:
        return [v + shift for v in values]

    for level, expected in ((0.3, ("kept", WINDOW)), (2.0, ("taken back", MOST)), (4.0, ("taken back", WINDOW))):
        trial = under_way(treatment=SLOWER)
        trial.before, trial.trouble = shifted(trial.before), shifted(trial.trouble)
        assert outcome(trial, shifted(noisy(level, MOST))) == expected


def test_a_fresh_run_that_learns_keeps_its_treatment() -> None:
    falling = (np.array(noisy(1.0, MOST)) * np.linspace(2.3, 1.2, MOST)).tolist()
    said, steps = outcome(fresh(), falling)
    assert said == "kept" and steps <= 3 * WINDOW


def test_a_fresh_run_that_stands_still_does_not_unless_nothing_else_is_left() -> None:
    assert outcome(fresh(), noisy(2.3, MOST, seed=3)) == ("taken back", MOST)
    assert outcome(fresh(last=True), noisy(2.3, MOST, seed=3)) == ("kept", MOST), "better than the trouble it was in"


def test_a_fresh_run_that_learns_slowly_is_told_by_all_of_its_losses_in_the_end() -> None:
    """No window of sixteen lies below the first losses beyond chance; of all of them the second half does."""
    slow = (np.array(noisy(1.0, MOST, spread=0.1, seed=3)) * np.linspace(1.9, 1.5, MOST)).tolist()
    assert outcome(Trial("layer", ("reinitialize",), 5, before=[1e5], trouble=[1e23]), slow) == ("kept", MOST)
    backwards = Trial("layer", ("reinitialize",), 5, before=[1e5], trouble=[1e23])
    assert outcome(backwards, slow[::-1]) == ("taken back", MOST)


def test_noise_alone_is_seldom_taken_for_learning() -> None:
    def alone(seed: int) -> str:
        lost = noisy(2.3, 8, spread=0.03, seed=1)
        trial = Trial("start", ("initialize",), 5, before=[2.3], trouble=lost, learned=False)
        return outcome(trial, noisy(2.3, MOST, spread=0.03, seed=seed))[0]

    ends = [alone(seed) for seed in range(300)]
    assert ends.count("kept") + ends.count("taken back") == 300 and ends.count("kept") < 15


def test_without_a_loss_there_is_only_calm() -> None:
    assert outcome(under_way(), [None] * MOST) == ("calm", WINDOW)
    assert outcome(under_way(), [None, 0.3] * MOST)[0] == "kept", "losses that come now and then are enough"


def test_losses_that_are_nan_do_not_keep_it() -> None:
    assert outcome(under_way(), [math.nan] * MOST)[0] == "taken back"
    assert outcome(fresh(), [math.nan] * MOST)[0] == "taken back"


def test_updates_that_still_replace_weights_call_for_a_lower_rate_once_it_had_time() -> None:
    still = noisy(2.3, MOST, seed=3)
    assert outcome(fresh(), still, large=True) == ("too fast", PATIENT * WINDOW)
    assert outcome(fresh(treatment=("rollback",)), still, large=True) == ("taken back", MOST)
    often = fresh()
    often.descents = MOST_DESCENTS
    assert outcome(often, still, large=True) == ("taken back", MOST)


def test_a_rate_is_lowered_only_so_often_within_one_trial() -> None:
    trial = fresh()
    trial.observe(1.0)
    said = [trial.descend() for _ in range(MOST_DESCENTS + 2)]
    assert said == [True] * MOST_DESCENTS + [False] * 2
    assert trial.losses == [], "each begins anew"


@pytest.mark.parametrize(
    ("losses", "now", "expected"),
    [
        ([1.0] * 10 + [5.0, 5.0], 5.0, True),
        ([1.0] * 10 + [5.0], 5.0, False),  # two in a row
        ([1.0] * 10 + [1.9, 1.9], 1.9, False),  # not twice the level
        ([1.0] * 5 + [8.0] + [1.0] * 5 + [5.0, 5.0], 5.0, False),  # it has been as high
        ([1.0] * 10 + [5.0, 5.0], None, False),
        ([-5.0] * 10 + [1.0, 1.0], 1.0, True),
        ([-5.0, 5.0] * 5 + [6.0, 7.0], 8.0, False),  # signed losses of such a spread
        ([1.0] * 10 + [math.inf, math.inf], math.inf, True),
        ([2.3, 5.0, 5.0], 5.0, True),  # at once, and above twice the untrained
        ([2.3, 3.0, 3.0], 3.0, False),
        ([5.0, 6.0, 6.0], 6.0, False),  # the first is of the copy: this batch's losses are of another size
        ([], 1e9, False),
    ],
)
def test_three_losses_in_a_row_tell_that_the_run_is_being_lost_again(
    losses: list[float], now: float | None, expected: bool
) -> None:
    trial = Trial("start", ("backoff",), 1, before=[2.3], trouble=[9.0] * 9)
    for loss in losses:
        trial.observe(loss)
    assert trial.lost(now) is expected


LOSSES = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf])), max_size=90)


@given(LOSSES, LOSSES, LOSSES, st.booleans(), st.integers(0, 90))
def test_any_losses_end_it_in_time_and_it_resumes(
    before: list[Any], trouble: list[Any], losses: list[Any], learned: bool, cut: int
) -> None:
    def begin() -> Trial:
        known = [v for v in before if v is not None], [v for v in trouble if v is not None]
        return Trial("unknown", ("rollback",), 3, before=known[0], trouble=known[1], learned=learned)

    def play(trial: Trial, part: list[Any]) -> list[Any]:
        said = []
        for loss in part:
            said.append(trial.lost(loss))
            trial.observe(loss)
            said.append(trial.verdict())
        return said

    trial = begin()
    wanted = play(trial, losses)
    first = begin()
    said = play(first, losses[:cut])
    second = Trial.from_state(through_a_file(first.state_dict()))
    assert said + play(second, losses[cut:]) == wanted
    assert same(second.state_dict(), trial.state_dict())
    if sum(loss is not None for loss in losses) >= MOST:
        assert any(wanted[1::2])


def test_a_guard_resumes_in_the_middle_of_a_trial() -> None:
    def track_of(guard: Guard) -> Any:
        return guard.attach(torch.optim.SGD(guard.module.parameters(), 0.1))

    one = track_of(first := Guard(nn.Linear(2, 2)))
    one.treatment.trial = under_way()
    one.treatment.trial.observe(0.3)
    for _ in range(3):
        one.batches.remember(torch.ones(2))
    second = Guard(nn.Linear(2, 2))
    second.load_state_dict(through_a_file(first.state_dict()))
    other = track_of(second)
    assert same(other.treatment.trial.state_dict(), one.treatment.trial.state_dict())
    assert other.batches.state_dict() == one.batches.state_dict()


def test_good_weights_that_fare_as_badly_as_the_trouble_are_no_cure_after_nine_losses() -> None:
    trial = under_way(before=0.3, trouble=2.0)
    assert outcome(trial, noisy(2.5, 64)) == ("taken back", 9) and trial.no_cure


@pytest.mark.parametrize(("treatment", "level"), [(("rollback",), 1.0), (("rollback", "backoff"), 2.5)])
def test_what_is_better_than_the_trouble_or_at_another_rate_is_measured_on(treatment: Any, level: float) -> None:
    trial = under_way(before=0.3, trouble=2.0, treatment=treatment)
    assert outcome(trial, noisy(level, 15)) == ("", 15) and not trial.no_cure


def test_trouble_of_two_steps_is_left_behind_by_losses_that_all_lie_below_it() -> None:
    for last, said in ((True, "kept"), (False, "taken back")):
        trial = Trial("unknown", ("rollback",), 5, before=[1.8], trouble=[6e13, math.inf], learned=False, last=last)
        assert outcome(trial, np.linspace(1.8, 1.9, 64).tolist()) == (said, 64)


@pytest.mark.parametrize(("first", "sick"), [(2.0, True), (0.3, False)])
def test_a_copy_is_sick_if_the_loss_is_bad_before_any_update(first: float, sick: bool) -> None:
    trial = under_way(treatment=SLOWER)
    for loss in [first, *noisy(2.0, 10)]:
        trial.observe(loss)
    assert trial.sick_from_its_beginning() and trial.of_a_sick_copy is sick


def test_three_updates_that_would_replace_weights_under_a_loss_that_is_no_better_speak_against_a_rate() -> None:
    for losses, expected in (([1.7, 49.0, 4.2], True), ([1.7, 1.2, 1.0], False)):
        trial = Trial("learning rate", ("rollback", "backoff"), 3, before=[2.0], trouble=[1e9])
        said = []
        for loss in losses:
            trial.observe(loss)
            said.append(trial.often_large(4.0))
        assert said == [False, False, expected]
        assert not trial.often_large(0.01) or expected
        assert same(Trial.from_state(through_a_file(trial.state_dict())).state_dict(), trial.state_dict())
        trial.descend()
        assert not trial.large
