"""A run is convicted by its own losses, and only where its updates had a hand in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lightning_gradguard.detectors import Overshoot
from lightning_gradguard.detectors.overshoot import DEAD
from lightning_gradguard.history.updates import LARGE
from tests.builders import calm, statistics, taught, through_a_file
from tests.detectors.feeding import run

HEALTHY, TOO_LARGE = 0.5 * LARGE, 3.0 * LARGE


def convicted(losses: Sequence[float], *, norms: Sequence[float] | None = None, **known: Any) -> int | None:
    """Return the step at which the run is convicted first, or None."""
    said = run(Overshoot(), norms if norms is not None else calm(len(losses)), losses, **known)
    assert all(v.form == "divergence" and v.alarm and not v.examine and v.reason for _, v in said)
    return said[0][0] if said else None


def noisy(levels: Sequence[float], spread: float = 0.1, seed: int = 0) -> list[float]:
    draws = np.random.default_rng(seed).standard_normal(len(levels))
    return (np.array(levels) * np.exp(spread * draws)).tolist()


# -- nothing had been learned


@pytest.mark.parametrize(("ratio", "expected"), [(TOO_LARGE, True), (HEALTHY, False)])
def test_a_loss_above_the_untrained_one_convicts_only_updates_that_replaced_weights(
    ratio: float, expected: bool
) -> None:
    step = convicted(noisy([2.3] * 3 + [9.0] * 40), ratio=ratio)
    assert (step is not None and 9 <= step <= 14) if expected else step is None


@pytest.mark.parametrize("back_to", [2.3, 2.2])
def test_a_loss_that_leapt_and_came_back_without_learning_is_convicted_when_patience_ends(back_to: float) -> None:
    """Nine losses in a row that lie above are not needed: one leap after such an update, and nothing learned since."""
    losses = noisy([2.3, 2.3, 2.3, 30.0, 12.0, *[back_to] * 80], 0.02)
    step = convicted(losses, ratio=TOO_LARGE)
    assert step is not None and 40 <= step <= 50
    assert convicted(losses, ratio=HEALTHY) is None


def test_an_overshoot_is_noted_once_there_are_losses_to_tell_their_noise_from() -> None:
    losses = noisy([2.3, 2.3, 2.3, 30.0, 12.0, *[2.3] * 80], 0.02)
    for count, expected in ((8, -1), (9, 9)):
        baseline, detector = taught([], []), Overshoot()
        run(detector, calm(count), losses[:count], baseline=baseline, ratio=TOO_LARGE)
        assert detector.state_dict()["overshot"] == expected
    noise = [2.3, 12.0, 0.5, 30.0, 1.0, 9.0, 2.0, 16.0, 1.5]
    run(detector := Overshoot(), calm(9), noise, ratio=TOO_LARGE)
    assert detector.state_dict()["overshot"] == -1, "a loss that jumps about like this has not leapt"


def test_an_overshoot_from_which_the_run_learns_is_forgiven() -> None:
    losses = noisy([2.3, 2.3, 2.3, 30.0, 12.0, *np.linspace(3.0, 0.2, 60), *[0.2] * 100])
    assert convicted(losses, ratio=TOO_LARGE) is None


def test_a_loss_that_stays_a_little_above_the_untrained_one_is_convicted_beyond_chance() -> None:
    stuck = noisy([2.3] * 9 + [2.9] * 200, 0.03)
    assert convicted(stuck, ratio=TOO_LARGE) is not None
    assert convicted(stuck, ratio=HEALTHY) is None


def test_a_plateau_at_the_untrained_loss_is_waited_on() -> None:
    """A steep but right start makes large updates; long plateaus are common."""
    for seed in range(10):
        assert convicted(noisy([2.3] * 400, 0.05, seed), ratio=TOO_LARGE) is None


@pytest.mark.parametrize("since", [60, 20])
def test_faded_gradients_end_the_wait_on_a_plateau(since: int) -> None:
    losses = noisy([2.3] * 200, 0.05)
    norms = calm(since) + calm(200 - since, level=1e-3)
    assert convicted(losses, norms=norms, ratio=HEALTHY) is None
    assert convicted(losses, norms=norms, ratio=TOO_LARGE) is not None


def test_gradients_that_fade_as_a_loss_of_both_signs_falls_convict_nobody() -> None:
    """As those of a policy do: its loss is about zero as soon as the policy is any good."""
    rng = np.random.default_rng(2)
    losses = [0.13, *rng.normal(-0.03, 0.1, 19).tolist(), *rng.normal(-0.012, 0.01, 180).tolist()]
    assert convicted(losses, norms=calm(20) + calm(180, level=1e-3), ratio=TOO_LARGE) is None


def test_gradients_that_are_zero_end_it_after_patience() -> None:
    step = convicted([2.3] * 100, norms=[1.0] * 10 + [0.0] * 90, ratio=TOO_LARGE)
    assert step is not None and 50 <= step <= 52
    assert convicted([2.3] * 100, norms=[1.0] * 10 + [0.0] * 90, ratio=HEALTHY) is None


@pytest.mark.parametrize(
    ("levels", "spread"),
    [
        (np.linspace(1.0, 0.5, 300), 0.5),
        (np.linspace(1.0, 0.5, 300), 0.3),
        (np.ones(300), 0.3),
        (np.ones(300), 1.0),
    ],
)
def test_noisy_losses_convict_next_to_nobody(levels: Any, spread: float) -> None:
    """Of small batches: after large updates at the start, which were right, the loss falls slowly or not yet."""
    found = [convicted(noisy(levels, spread, seed), ratio=TOO_LARGE) for seed in range(1000, 1060)]
    assert sum(step is not None for step in found) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_the_sign_of_the_loss_does_not_matter(seed: int) -> None:
    noise = 0.3 * np.random.default_rng(seed).standard_normal(200)
    assert convicted((noise - 5.0).tolist(), ratio=TOO_LARGE) is None
    lost = np.concatenate([np.full(9, -5.0), np.full(191, 9.0)]) + noise
    assert convicted(lost.tolist(), ratio=TOO_LARGE) is not None


def test_one_hard_batch_convicts_nobody() -> None:
    losses = [2.3] * 30 + [1e6] + [2.0] * 30
    assert convicted(losses, ratio=TOO_LARGE) is None


# -- the output does not depend on the input


@pytest.mark.parametrize(("variation", "expected"), [(0.1 * DEAD, True), (10.0 * DEAD, False), (None, False)])
def test_an_output_that_does_not_depend_on_the_input_is_dead(variation: float | None, expected: bool) -> None:
    seen = statistics(1.0, loss=2.3, variation=variation)
    assert (Overshoot().judge(seen, taught([1.0] * 100, [2.3] * 100)) is not None) is expected


# -- something had been learned

LEARNED = [*np.linspace(2.3, 0.3, 100).tolist(), *[0.3] * 100]
LOST = noisy([*LEARNED, *[1.8] * 60], 0.05)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.1] * 200 + [0.1] * 60, False),  # the data have changed
        ([0.1] * 200 + [0.2] * 60, True),
        ([0.1] * 200 + [0.02] * 60, False),
        (np.geomspace(1e-4, 0.1, 90).tolist() + [0.1] * 170, False),  # a warm-up, while which the loss fell
        (None, False),
    ],
)
def test_what_was_learned_is_lost_by_a_rate_larger_than_any_that_it_was_learned_with(
    rates: list[float] | None, expected: bool
) -> None:
    step = convicted(LOST, rates=rates)
    assert (step is not None and 208 <= step <= 215) if expected else step is None


def test_faded_gradients_convict_a_run_that_lost_what_it_had_learned_and_large_ones_do_not() -> None:
    for level, expected in ((1e-3, True), (0.5, False), (10.0, False)):
        norms = calm(200) + calm(60, level=level)
        assert (convicted(LOST, norms=norms) is not None) is expected


def test_where_a_rate_was_convicted_before_a_loss_that_is_lost_speaks_against_the_next() -> None:
    baseline = taught(calm(200), LOST[:200])
    for known in (False, True):
        baseline.updates.convicted = known
        again = taught([], [])
        again.load_state_dict(baseline.state_dict())
        assert bool(run(Overshoot(), calm(60), LOST[200:], baseline=again)) is known


def test_large_updates_of_late_convict_what_is_lost_and_those_of_the_beginning_do_not() -> None:
    assert convicted(LOST, ratio=TOO_LARGE) is None, "the run has learned with updates of that size"
    baseline = taught(calm(200), LOST[:200])
    assert run(Overshoot(), calm(60), LOST[200:], baseline=baseline, ratio=TOO_LARGE)


def test_a_loss_that_is_half_lost_for_a_few_batches_only_convicts_nobody() -> None:
    losses = noisy([*LEARNED, *([1.8] * 8 + [0.2]) * 5], 0.05)
    assert convicted(losses, rates=[0.1] * 200 + [0.4] * 45) is None


def test_without_losses_nothing_is_said() -> None:
    assert run(Overshoot(), calm(200), ratio=TOO_LARGE) == []


def test_it_remembers_over_a_resume_when_the_run_overshot() -> None:
    losses = noisy([2.3, 2.3, 2.3, 30.0, 12.0, *[2.3] * 30], 0.02)
    baseline = taught(calm(1), losses[:1])
    first = Overshoot()
    run(first, calm(34), losses[1:], baseline=baseline, ratio=TOO_LARGE)
    second = Overshoot()
    second.load_state_dict(through_a_file(first.state_dict()))
    rest = noisy([2.3] * 20, 0.02, 1)
    kept = baseline.state_dict()
    said = run(second, calm(20), rest, baseline=baseline, ratio=TOO_LARGE)
    assert said and said[0][0] < 15
    baseline.load_state_dict(kept)
    assert run(Overshoot(), calm(20), rest, baseline=baseline, ratio=TOO_LARGE) == []


def test_what_another_optimizer_may_have_moved_convicts_no_rate_that_had_to_be_lowered() -> None:
    losses = noisy([2.3] * 9 + np.linspace(0.2, 0.1, 60).tolist() + np.linspace(0.1, 1.0, 200).tolist(), 0.02)
    for alone in (True, False):
        baseline = taught([], [])
        baseline.alone, baseline.updates.convicted = alone, True
        assert bool(run(Overshoot(), calm(len(losses)), losses, baseline=baseline, ratio=HEALTHY)) is alone
        assert baseline.anew().alone is alone


# -- on the way back to the schedule


@pytest.mark.parametrize(
    ("rate_was_convicted", "leap", "expected"), [(True, 8.0, 62), (False, 8.0, None), (True, 0.5, None)]
)
def test_three_losses_that_leap_are_enough_once_a_rate_was_convicted(
    rate_was_convicted: bool, leap: float, expected: int | None
) -> None:
    """Of an untrained loss of 40 a fifth is lost; or hardly anything, as where the loss has come to nothing."""
    losses = noisy([40.0] * 9 + [10.0, 3.0, 1.0] + [0.1] * 48 + [leap] * 3 + [0.1] * 20)
    assert convicted(losses, convicted=rate_was_convicted) == expected


@pytest.mark.parametrize(
    ("rate_was_convicted", "to", "expected"), [(True, 1.0, True), (False, 1.0, False), (True, 0.3, False)]
)
def test_a_loss_that_stays_far_above_its_best_is_lost_whatever_untrained_weights_had(
    rate_was_convicted: bool, to: float, expected: bool
) -> None:
    """Of an untrained loss of 40 hardly anything is lost; where the loss is on its way back, it is waited for."""
    losses = noisy([40.0] * 9 + [10.0, 3.0, 1.0] + [0.1] * 48 + np.linspace(1.0, to, 100).tolist(), 0.02)
    step = convicted(losses, convicted=rate_was_convicted)
    assert (step is not None and 120 <= step <= 130) if expected else step is None


def test_what_had_come_down_and_went_up_again_is_lost_though_it_never_fell_by_half() -> None:
    losses = noisy([3.9, 3.5, 3.4, 3.5, 3.6, 3.4, 3.3, 3.2, 3.3] + [3.1] * 15 + [3.0] * 20 + [3.5] * 60, 0.01)
    assert convicted(losses, ratio=TOO_LARGE) is not None
    assert convicted(losses, ratio=HEALTHY) is None
    assert convicted(noisy([3.9] + [3.4] * 90, 0.02), ratio=TOO_LARGE) is None, "a plateau"
