"""The bracket of the learning rate: between what has worked and what has failed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.policy.rate_bracket import (
    BELOW,
    CLIMB,
    COOL_DOWN,
    DESCENT,
    DOUBLING,
    FARTHEST,
    HEALTHY,
    STALE,
    WAIT,
    RateBracket,
)
from tests.builders import through_a_file


def updates(bracket: RateBracket, count: int, scheduled: float, *, best: bool, learned: bool = True) -> list[float]:
    """Make updates as the back-off makes them; return their rates."""
    rates = []
    for _ in range(count):
        bracket.follow(scheduled)
        rates.append(scheduled * bracket.share(scheduled))
        bracket.made(rates[-1], best=best, learned=learned)
    return rates


def test_a_schedule_that_nobody_convicted_is_free() -> None:
    bracket = RateBracket()
    assert bracket.free and bracket.share(0.1) == 1.0 == bracket.share(0.0)
    assert updates(bracket, 10, 0.1, best=True) == [0.1] * 10
    assert bracket.good == 0.1


def test_where_nothing_has_worked_the_next_rate_is_an_eighth() -> None:
    bracket = RateBracket()
    assert bracket.convict(0.8) == pytest.approx(0.8 / DESCENT)
    assert bracket.share(0.8) == pytest.approx(1.0 / DESCENT) and bracket.share(0.1) == 1.0
    assert bracket.convict(0.2) == pytest.approx(0.2 / DESCENT)


@pytest.mark.parametrize(("ratio", "times"), [(0.0, DESCENT), (5.0, 5.0 / HEALTHY), (1e9, FARTHEST)])
def test_the_size_of_the_updates_tells_how_far_to_go_down(ratio: float, times: float) -> None:
    assert RateBracket().convict(1.0, ratio) == pytest.approx(1.0 / times)


def test_after_going_back_the_rate_is_the_largest_that_has_worked() -> None:
    bracket = RateBracket()
    updates(bracket, 5, 0.01, best=True)
    assert bracket.convict(1.0, 50.0) == pytest.approx(0.01)
    assert bracket.convict(0.01) < BELOW * 0.01 and bracket.good == 0.0, (
        "lost at what it had worked with, which is no proof any more"
    )


@pytest.mark.parametrize(("clipped", "top"), [(False, BELOW), (True, 1.0)])
def test_where_no_update_can_replace_weights_the_rate_climbs_to_the_one_that_was_lost(
    clipped: bool, top: float
) -> None:
    bracket = RateBracket()
    bracket.convict(0.1)
    rates = [bracket.next_share(0.1, best=True, learned=True, clipped=clipped) for _ in range(WAIT // 2)]
    assert max(rates) == pytest.approx(top) and bracket.free is clipped


def test_a_loss_that_is_no_better_than_untrained_proves_no_rate() -> None:
    bracket = RateBracket()
    updates(bracket, 50, 0.1, best=True, learned=False)
    updates(bracket, 50, 0.1, best=False)
    assert bracket.good == 0.0


def test_it_climbs_while_the_loss_is_at_its_best_up_to_a_quarter_of_what_failed() -> None:
    bracket = RateBracket()
    bracket.convict(1.0)
    rates = updates(bracket, 40, 1.0, best=True)
    assert rates[0] == pytest.approx(1.0 / DESCENT) and rates[-1] == pytest.approx(BELOW)
    assert all(after <= CLIMB * before * (1 + 1e-12) for before, after in itertools.pairwise(rates))


def test_a_climb_that_went_too_far_is_taken_back_but_not_below_where_it_began() -> None:
    bracket = RateBracket()
    start = bracket.convict(1.0)
    updates(bracket, 40, 1.0, best=True)
    assert updates(bracket, STALE + 1, 1.0, best=False)[-1] == pytest.approx(0.5 * BELOW)
    # Before the bounds are loosened.
    assert min(updates(bracket, 20, 1.0, best=False)) >= start * (1 - 1e-12)


def test_bounds_are_loosened_when_calm_has_lasted_and_twice_as_late_after_a_relapse() -> None:
    def wait(bracket: RateBracket) -> int:
        bad = bracket.bad
        for step in range(10 * WAIT):
            bracket.made(bracket.in_use, best=False, learned=True)
            if bracket.bad > bad:
                return step
        return -1

    bracket = RateBracket()
    bracket.convict(1.0)
    first = wait(bracket)
    assert first == WAIT
    bad = bracket.bad
    for _ in range(DOUBLING):
        bracket.made(bracket.in_use, best=False, learned=True)
    assert bracket.bad == pytest.approx(2.0 * bad, rel=1e-6)
    bracket.convict(bracket.in_use)
    assert wait(bracket) == 2 * WAIT
    bracket.convict(bracket.in_use)
    assert wait(bracket) == 4 * WAIT


def test_a_schedule_that_comes_down_by_itself_is_followed_and_what_failed_is_not_forgotten() -> None:
    bracket = RateBracket()
    bracket.convict(1.0)
    assert updates(bracket, 3, 0.1, best=False) == [0.1] * 3
    assert not bracket.free and bracket.bad == 1.0


def test_the_schedule_is_free_once_the_bound_has_been_loosened_to_the_largest_rate_it_has_asked_for() -> None:
    bracket = RateBracket()
    bracket.convict(1.0)
    updates(bracket, 1, 2.0, best=False)
    rates = updates(bracket, WAIT + 6 * DOUBLING, 0.5, best=True)
    assert max(rates) == 0.5 and bracket.free
    held = [rate for rate in rates if rate < 0.5]
    assert WAIT < len(held) <= WAIT + DOUBLING + 1, "from a quarter of 1 to a half"
    bracket = RateBracket()
    bracket.convict(1.0)
    updates(bracket, 1, 2.0, best=False)
    updates(bracket, len(held) + DOUBLING, 0.5, best=True)
    assert not bracket.free and bracket.share(2.0) < 1.0, "the schedule has asked for 2"


def test_after_a_start_that_was_mended_it_climbs_from_an_eighth_to_the_whole_schedule() -> None:
    bracket = RateBracket()
    bracket.convict(1.0, 1e9)
    bracket.begin(1.0)
    assert bracket.good == 0.0
    rates = updates(bracket, 60, 1.0, best=True)
    assert rates[0] == pytest.approx(1.0 / DESCENT) and rates[-1] == 1.0 and bracket.free


@pytest.mark.parametrize("low", [0.01, 0.03])
def test_a_schedule_that_rises_again_is_held_below_what_lost_the_run(low: float) -> None:
    bracket = RateBracket()
    bracket.convict(0.1)
    updates(bracket, 20, low, best=True)
    assert max(updates(bracket, 5, 0.2, best=False)) < 0.1


def test_what_convicted_a_rate_can_be_struck_out() -> None:
    bracket = RateBracket()
    updates(bracket, 3, 0.1, best=True)
    bracket.convict(1.0)
    bracket.acquit()
    assert bracket.free and bracket.share(1.0) == 1.0 and bracket.good == 0.1


def test_a_rate_of_zero_convicts_nobody() -> None:
    bracket = RateBracket()
    bracket.convict(0.0)
    assert bracket.free


RATES = st.floats(1e-8, 1e3)
EVENTS = st.one_of(
    st.tuples(st.just("convict"), RATES, st.floats(0.0, 1e4)),
    st.tuples(st.just("made"), st.booleans(), st.integers(1, 60)),
)


@given(st.lists(EVENTS, max_size=30), RATES, st.integers(0, 30))
def test_any_history_keeps_below_what_failed_and_resumes(events: list[Any], scheduled: float, cut: int) -> None:
    def play(bracket: RateBracket, part: list[Any]) -> list[float]:
        said = []
        for kind, *rest in part:
            if kind == "convict":
                rate = scheduled * bracket.share(scheduled)
                after = bracket.convict(rate, rest[1])
                assert 0.0 < after <= BELOW * rate * (1 + 1e-12), "each conviction at least halves the rate"
            else:
                said += updates(bracket, rest[1], scheduled, best=rest[0])
                assert all(0.0 < rate <= scheduled for rate in said)
                assert said[-1] <= max(BELOW * bracket.bad, 0.0) * (1 + 1e-9)
        return said

    whole, first, second = RateBracket(), RateBracket(), RateBracket()
    wanted = play(whole, events)
    begun = play(first, events[:cut])
    second.load_state_dict(through_a_file(first.state_dict()))
    assert begun + play(second, events[cut:]) == wanted
    assert second.state_dict() == whole.state_dict()


def test_where_the_loss_is_worse_than_it_was_it_is_halved_below_where_it_began() -> None:
    bracket = RateBracket()
    start = bracket.convict(1.0)
    for _ in range(20 * STALE):
        bracket.made(bracket.in_use, best=False, learned=True, worse=True)
        if bracket.bad > 1.0:
            break  # All bounds are being loosened.
    assert bracket.in_use == pytest.approx(start / DESCENT, rel=0.01)


def test_a_rate_that_is_held_down_falls_to_nothing_over_the_last_fifth_of_a_run() -> None:
    bracket = RateBracket()
    bracket.convict(1.0)
    shares = [
        bracket.next_share(1.0, best=False, learned=True, left=left) for left in (1.0, COOL_DOWN, 0.5 * COOL_DOWN, 0.0)
    ]
    assert shares == pytest.approx([1.0 / DESCENT, 1.0 / DESCENT, 0.5 / DESCENT, 0.0])
    assert bracket.next_share(1.0, best=False, learned=True) == pytest.approx(1.0 / DESCENT), "a run that is prolonged"


def test_a_schedule_that_is_free_does_not_cool_down() -> None:
    bracket = RateBracket()
    assert bracket.next_share(1.0, best=False, learned=False, left=0.0) == 1.0
