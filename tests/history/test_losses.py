"""The losses of accepted steps: what was learned, and whether it is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.losses import LossHistory
from lightning_gradguard.history.sample import ENOUGH, NORM_WINDOW, RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE, WHOLE, UpdateHistory
from tests.builders import calm, taught, through_a_file


def near(level: float, count: int) -> list[float]:
    """Losses of one level, a thousandth of it apart."""
    return calm(count, level=level, spread=1e-3, seed=count)


def falling(first: float, best: float, now: float, count: int) -> list[float]:
    """Losses that fall within ten steps, stay where they are, and are ``now`` at the end; with a little noise."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(90 + count)
    parts = [np.full(20, first), np.linspace(first, best, 10), np.full(60, best), np.full(count, now)]
    return (np.concatenate(parts) + noise).tolist()


def test_loss_level_is_a_median_of_the_last_losses() -> None:
    losses = [float(v) for v in range(60)]
    baseline = taught([1.0] * 60, losses)
    assert baseline.losses.level()[0] == pytest.approx(np.median(losses), abs=0.5)
    assert baseline.losses.level(RECENT)[0] == np.median(losses[-RECENT:])
    assert baseline.losses.first == losses[:RECENT]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_counts_as_elevated(loss: float) -> None:
    assert taught([1.0] * 9, [1.0] * 9).losses.elevated(loss) is True


def test_without_losses_nothing_is_said_of_them() -> None:
    assert taught([1.0] * 9).losses.elevated(1.0) is None
    assert taught([1.0] * 9, [1.0] * 9).losses.elevated(None) is None
    assert math.isnan(Baseline().losses.untrained)


def test_the_larger_the_updates_the_fewer_losses_are_untrained() -> None:
    losses = [2.3, 2.6, 2.7, 2.8, 2.7, 2.6, 2.5, 2.5, 2.4, *[2.3] * 50]
    usual, large, whole = (taught(calm(59), losses) for _ in range(3))
    large.updates.ratio, whole.updates.ratio = 2 * LARGE, 2 * WHOLE
    assert [known.losses.untrained for known in (usual, large, whole)] == [2.5, 2.4, 2.3]
    assert [len(known.losses.of_untrained) for known in (usual, large, whole)] == [9, 9, 1]
    assert not large.losses.learned and not whole.losses.learned


def test_a_leap_at_the_best_level_is_no_part_of_the_best_losses() -> None:
    """A median of nine shrugs off four losses of a run that is being lost, and what is lost is measured by the best
    ones."""
    baseline = taught(calm(44), [*calm(40), 50.0, 60.0, 70.0, 80.0])
    assert max(baseline.losses.best) < 5.0


@pytest.mark.parametrize(
    ("best", "expected"),
    [(2.0, True), (2.15, True), (2.19, False), (2.3, False), (9.0, False)],  # below all nine of the first
)
def test_something_is_learned_below_all_of_the_first_losses(best: float, expected: bool) -> None:
    first = [2.3, 2.2, 2.4, 2.35, 2.17, 2.3, 2.25, 2.4, 2.45]
    assert taught([1.0] * 40, first + near(best, 31)).losses.learned is expected


def test_sixteen_losses_below_the_first_nine_are_needed_and_then_it_is_decided_once() -> None:
    losses = near(2.3, 9) + np.linspace(1.5, 1.4, 16).tolist()
    assert not taught([1.0] * 23, losses[:23]).losses.learned
    known = taught([1.0] * 25, losses)
    assert known.losses.learned
    for loss in near(9.0, 2 * NORM_WINDOW):
        known.accept(1.0, loss)
    assert known.losses.learned
    again = Baseline()
    again.load_state_dict(through_a_file(known.state_dict()))
    assert again.losses.learned


def test_what_was_learned_is_still_known_after_a_resume() -> None:
    known = taught([1.0] * 25, near(2.3, 9) + np.linspace(1.0, 0.9, 16).tolist())
    assert known.losses.learned
    for step in range(40):
        known.accept(1.0, 9.0 if step % 9 < 4 else 0.5 - 0.001 * step)
    again = Baseline()
    again.load_state_dict(through_a_file(known.state_dict()))
    assert known.losses.learned and again.losses.learned


def test_something_is_learned_though_one_of_the_first_losses_was_lower_by_luck() -> None:
    first = [2.3, 2.2, 2.4, 2.35, 0.5, 2.3, 2.25, 2.4, 2.45]
    assert not taught([1.0] * 40, first + near(2.3, 31)).losses.learned
    assert taught([1.0] * 200, first + near(0.6, 191)).losses.learned


def test_a_loss_that_falls_to_exactly_zero_and_stays_there_has_learned() -> None:
    """A hinge loss, or a cross-entropy in single precision."""
    assert taught([1.0] * 200, near(2.3, 9) + [1.0] * 3 + [0.0] * 188).losses.learned


@pytest.mark.parametrize("count", [2 * THIN_HISTORY, 400])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_noise_alone_is_seldom_taken_for_something_learned(spread: float, count: int) -> None:
    """A run that has learned nothing is forgiven its large updates, and nothing is drawn anew in it, if it counts as
    one that has."""
    learned = [
        taught(calm(count), calm(count, level=2.3, spread=spread, seed=seed)).losses.learned for seed in range(100)
    ]
    assert sum(learned) <= 5


def test_without_losses_nothing_was_learned_or_lost() -> None:
    known = taught(calm(100))
    assert not (
        known.losses.learned
        or known.losses.lost
        or known.losses.worse
        or known.losses.above_untrained
        or known.losses.at_best
        or known.losses.flat
    )


@pytest.mark.parametrize(
    ("best", "now", "expected"),
    [(1.3, 2.4, True), (1.3, 2.0, True), (1.3, 1.7, False), (2.3, 2.9, False), (-1.0, 1.5, True), (-1.0, 0.0, False)],
)
def test_a_run_has_lost_what_it_had_learned_when_half_of_it_is_gone(best: float, now: float, expected: bool) -> None:
    assert taught([1.0] * 110, falling(2.3, best, now, 20)).losses.lost is expected


def test_what_is_lost_in_eight_of_nine_losses_is_not_lost_yet() -> None:
    losses = falling(2.3, 0.3, 2.0, 9)
    losses[89] = 0.25
    for count, expected in ((98, False), (99, True)):
        known = taught([1.0] * count, losses[:count])
        assert known.losses.lost is known.losses.worse is expected


def test_the_best_losses_are_those_at_the_best_level() -> None:
    known = taught([1.0] * 120, falling(2.0, 0.5, 1.0, 30))
    assert known.losses.best_level == pytest.approx(0.5, abs=0.03)
    assert len(known.losses.best) == ENOUGH and max(known.losses.best) < 0.6
    assert not known.losses.at_best and taught([1.0] * 60, [2.0] * 30 + [0.5] * 30).losses.at_best


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1.0, 2.5, True),
        (1.0, 1.9, False),
        (-5.0, 1.0, True),
        (-5.0, -3.0, False),
        (0.0, 0.1, True),
        (1e-300, 1e300, True),
    ],
)
def test_a_loss_stands_above_the_untrained_one_by_as_much_again(first: float, last: float, expected: bool) -> None:
    assert taught([1.0] * 60, [first] * 20 + [last] * 40).losses.above_untrained is expected


@pytest.mark.parametrize("seed", range(20))
def test_noise_that_doubles_a_loss_now_and_then_does_not_stand_above(seed: int) -> None:
    assert not taught(calm(60), calm(60, spread=1.0, seed=seed)).losses.above_untrained


@given(st.lists(st.floats(-1e308, 1e308), max_size=60), st.floats(0.0, 1.0))
def test_any_losses_can_be_asked_about(losses: list[float], ratio: float) -> None:
    known = taught([1.0] * len(losses), losses)
    known.updates.ratio = ratio
    faded = known.norms.faded(since_first=True), known.norms.faded(since_first=False)
    for told in (
        known.losses.learned,
        known.losses.lost,
        known.losses.worse,
        known.losses.above_untrained,
        known.losses.at_best,
        known.losses.flat,
        *faded,
    ):
        assert told in (True, False)
    assert not known.losses.lost or known.losses.learned


def test_flat_is_a_loss_that_does_not_fall_beyond_chance() -> None:
    for slope, expected in ((0.0, True), (0.001, True), (-0.05, False)):
        losses = [2.0 + slope * step + 0.05 * (step % 3) for step in range(80)]
        assert taught(calm(80), losses).losses.flat is expected, slope
    assert not taught(calm(20), [2.0] * 20).losses.flat, "of so few nothing can be said"


@pytest.mark.parametrize(("convicted", "share"), [(False, 0.5), (True, 0.15)])
def test_once_a_rate_was_convicted_less_has_to_be_lost(convicted: bool, share: float) -> None:
    updates = UpdateHistory()
    losses = LossHistory(updates)
    for loss in [2.0] * 20 + [1.0] * 40:
        losses.accept(loss)
    updates.convicted = convicted
    assert losses.learned
    assert not losses.far_from_best(1.0 + 0.9 * share) and losses.far_from_best(1.0 + 1.1 * share)
