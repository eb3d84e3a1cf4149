"""What each detector must see, and what it must not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.baseline import Baseline
from lightning_gradguard.detectors import (
    ColdStart,
    Detector,
    Divergence,
    Drift,
    LossLeap,
    NonFinite,
    RateLeap,
    RateRise,
    Spike,
    SpoiltState,
    Stagnation,
    UpdateLeap,
    Vanishing,
)
from lightning_gradguard.guard import default_detectors
from lightning_gradguard.records import Verdict
from tests.builders import calm, statistics, taught


def run(detector: Detector, norms: Sequence[float], losses: Sequence[float] | None = None) -> list[tuple[int, Verdict]]:
    """Feed accepted steps until the end; return what was said, and when."""
    baseline, said = Baseline(), []
    for step, norm in enumerate(norms):
        seen = statistics(norm, step=step, loss=losses[step] if losses is not None else None)
        verdict = detector.judge(seen, baseline)
        if verdict is not None:
            said.append((step, verdict))
        baseline.accept(norm, seen.loss)
        detector.accept(seen, baseline)
    return said


# -- sudden


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
@given(seed=st.integers(0, 10**6), level=st.floats(1e-6, 1e6))
def test_a_thousandfold_spike_is_seen_and_calm_is_not(spread: float, seed: int, level: float) -> None:
    baseline = taught(calm(60, level=level, spread=spread, seed=seed))
    verdict = Spike().judge(statistics(level * 1e3), baseline)
    assert verdict is not None and verdict.form == "sudden" and verdict.alarm
    assert verdict.value == level * 1e3 > verdict.limit >= level
    assert Spike().judge(statistics(baseline.typical), baseline) is None


def test_a_loss_that_leaps_while_the_weights_stand_still_is_the_datas_doing() -> None:
    """Of a sparse reward the first batches may see nothing: loss and norm leap, and no update was to blame."""
    baseline = taught([0.3], [0.04])
    leap = {"loss": 6.5, "step": 1}
    assert Spike().judge(statistics(2.1, **leap), baseline) is not None
    assert Spike().judge(statistics(2.1, **leap, moved=1.0), baseline) is not None
    assert Spike().judge(statistics(2.1, **leap, moved=0.01), baseline) is None
    assert Spike().judge(statistics(1e4, **leap, moved=0.01), baseline) is not None
    divergence = Divergence()
    for _ in range(10):
        divergence.accept(statistics(2.1, **leap, moved=0.01), baseline)
    assert divergence.state_dict() == Divergence().state_dict()


@pytest.mark.parametrize(
    ("lived", "rate", "ratio", "seen"),
    [
        (0.1, 10.0, 3.0, True),
        (0.1, 10.0, 0.01, False),  # fine-tuning in stages: from almost nothing to something small
        (0.1, 0.5, 3.0, False),  # a warm-up's next step
        (0.0, 10.0, 3.0, False),  # a warm-up that begins at zero
        (0.1, None, 3.0, False),
        (0.1, 10.0, None, False),
    ],
)
def test_a_rate_that_leaps_is_seen_before_its_update(
    lived: float, rate: float | None, ratio: float | None, seen: bool
) -> None:
    baseline = taught(calm(60))
    baseline.rate = lived
    verdict = RateLeap().judge(statistics(1.0, rate=rate, update_ratio=ratio), baseline)
    assert (verdict is not None) == seen
    assert verdict is None or (verdict.form, verdict.value, verdict.limit) == ("rate", rate, lived)


@pytest.mark.parametrize(
    ("norm", "rate", "ratio", "loss", "seen"),
    [
        (12.0, 0.1, 0.5, 4.0, True),
        (4.0, 0.3, 0.5, 4.0, True),  # by norm and rate together
        (12.0, 0.05, 0.5, 4.0, False),  # a rate that was lowered makes less of it
        (12.0, 0.1, 0.1, 4.0, False),  # a noisy run near its end
        (12.0, 0.1, 0.5, 1.9, False),  # honest growth: the loss has fallen
        (6.0, 0.1, 0.5, 4.0, False),
        (12.0, None, 0.5, 4.0, False),
        (12.0, 0.1, None, 4.0, False),
        (12.0, 0.1, 0.5, None, False),
    ],
)
def test_an_update_that_overruns_the_weights_is_seen_before_it_is_made(
    norm: float, rate: float | None, ratio: float | None, loss: float | None, seen: bool
) -> None:
    baseline = taught([1.0] * 12, [2.0] * 12)
    for _ in range(12):
        baseline.accept_rate(0.1)
    now = statistics(norm, rate=rate, update_ratio=ratio, loss=loss)
    verdict = UpdateLeap().judge(now, baseline)
    assert (verdict is not None) == seen
    assert verdict is None or (verdict.form, verdict.value) == ("sudden", norm)
    assert verdict is None or verdict.limit == pytest.approx(0.8 / (rate or 1.0))
    # Where the size of an update does not follow the gradient's, nothing is foretold; nor while nothing is usual.
    assert (
        UpdateLeap().judge(statistics(norm, rate=rate, update_ratio=ratio, loss=loss, normalised=True), baseline)
        is None
    )
    assert UpdateLeap().judge(now, taught([1.0] * 8, [2.0] * 8)) is None


def test_the_usual_rate_follows_the_rates_of_late() -> None:
    baseline = Baseline()
    for rate in (0.0, 0.1, 0.1):
        baseline.accept_rate(rate)
    assert baseline.usual_rate == 0.1
    for _ in range(64):
        baseline.accept_rate(1.0)
    assert baseline.usual_rate == pytest.approx(10 ** -math.exp(-1.0), rel=0.02), "after one time constant 1/e is left"


def test_a_spoilt_state_is_told_as_it_was_found() -> None:
    assert SpoiltState().judge(statistics(1.0), taught(calm(60))) is None
    verdict = SpoiltState().judge(statistics(1.0, spoilt="exp_avg of w is not finite"), taught(calm(60)))
    assert verdict is not None and verdict.form == "state" and "exp_avg of w" in verdict.reason


def test_a_first_gradient_that_adam_would_long_remember_is_seen_in_hindsight() -> None:
    norms = [1e5, 0.3, 0.4, 0.3]
    seen = [ColdStart().judge(statistics(0.3, normalised=True), taught(norms[:n])) for n in (1, 2, 3, 4)]
    assert seen[:3] == [None] * 3
    assert seen[3] is not None and (seen[3].form, seen[3].value) == ("cold-start", pytest.approx(1e5))
    assert ColdStart().judge(statistics(0.3), taught(norms)) is None  # SGD has no memory of it
    assert ColdStart().judge(statistics(0.3, normalised=True), taught([20.0, 0.3, 0.4, 0.3])) is None
    assert ColdStart().judge(statistics(0.3, normalised=True), taught([*norms, 0.3])) is None


@given(scale=st.floats(1e-10, 1e10), seed=st.integers(0, 1000))
def test_the_limit_scales_with_the_gradients(scale: float, seed: int) -> None:
    norms = calm(50, seed=seed)
    one, other = Spike().limit(taught(norms)), Spike().limit(taught([n * scale for n in norms]))
    assert other == pytest.approx(one * scale, rel=1e-6)


def test_without_history_anything_passes_the_spike_detector() -> None:
    assert Spike().limit(Baseline()) == math.inf
    assert Spike().judge(statistics(1e30), Baseline()) is None


def test_a_wider_history_allows_more() -> None:
    limits = [Spike().limit(taught(calm(100, spread=spread))) for spread in (0.1, 0.6, 0.9)]
    assert limits == sorted(limits)


def test_a_few_spikes_that_slipped_through_do_not_hide_the_next() -> None:
    norms = calm(60)
    assert Spike().judge(statistics(1e4), taught([*norms, 1e2, 1e2, 1e2])) is not None


# -- healthy norms of every spread leave all detectors silent


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3, 0.6])
def test_nobody_raises_an_alarm_over_a_long_calm(spread: float) -> None:
    norms = calm(3000, spread=spread, seed=7)
    losses = (1.0 + 0.05 * np.random.default_rng(3).standard_normal(3000)).tolist()
    for detector in default_detectors():
        assert [v for _, v in run(detector, norms, losses) if v.alarm and not v.examine] == []


def test_nobody_raises_an_alarm_over_a_run_that_learns() -> None:
    decay = np.exp(-np.arange(2000) / 300.0)
    norms = (np.array(calm(2000, spread=0.3)) * (0.01 + decay)).tolist()
    losses = (0.05 + 2.0 * decay * np.exp(0.1 * np.random.default_rng(1).standard_normal(2000))).tolist()
    for detector in default_detectors():
        assert [v for _, v in run(detector, norms, losses) if v.alarm and not v.examine] == []


# -- drift


def growing(steps: int, factor: float, before: int = 200) -> list[float]:
    norms = calm(before + steps)
    growth = np.concatenate([np.ones(before), np.exp(np.linspace(0, math.log(factor), steps))])
    return (np.array(norms) * growth).tolist()


def test_a_thousandfold_drift_over_300_steps_is_seen_early() -> None:
    losses = [1.0] * 200 + np.linspace(1.0, 4.0, 300).tolist()
    said = run(Drift(), growing(300, 1e3), losses)
    assert said and 200 <= said[0][0] <= 220
    alarms = [step for step, v in said if v.alarm]
    assert alarms and alarms[0] < 400
    assert all(v.form == "drift" for _, v in said)


def test_growth_that_a_falling_loss_excuses_is_honest() -> None:
    losses = [1.0] * 200 + np.linspace(1.0, 0.2, 300).tolist()
    assert [v for _, v in run(Drift(), growing(300, 20.0), losses) if v.alarm] == []


def test_one_outlier_is_no_drift() -> None:
    norms = calm(300)
    norms[250] = 1e6
    assert run(Drift(), norms, [1.0] * 300) == []


# -- non-finite


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_seen_at_any_time(norm: float) -> None:
    for baseline in (Baseline(), taught(calm(50))):
        seen = statistics(norm, nonfinite=(("layer.weight", 3),))
        verdict = NonFinite().judge(seen, baseline)
        assert verdict is not None and verdict.alarm and verdict.form == "non-finite"
        assert verdict.excess == math.inf and verdict.layers == ("layer.weight",) and "3 elements" in verdict.reason


def test_an_overflow_is_left_to_the_scaler_until_it_does_not_help() -> None:
    detector, baseline = NonFinite(patience=3), taught(calm(50))
    seen = statistics(math.inf, scaled=True)
    for _ in range(3):
        assert detector.judge(seen, baseline) is None
        detector.reject(seen)
    verdict = detector.judge(seen, baseline)
    assert verdict is not None and verdict.form == "overflow"
    detector.accept(statistics(1.0, scaled=True), baseline)
    assert detector.judge(seen, baseline) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_alone_is_reported(loss: float) -> None:
    verdict = NonFinite().judge(statistics(1.0, loss=loss), taught(calm(50)))
    assert verdict is not None and not verdict.alarm and "loss" in verdict.reason
    assert NonFinite().judge(statistics(1.0, loss=1.0), taught(calm(50))) is None


# -- cold start


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_first_gradient_that_is_not_finite_is_a_cold_start(norm: float) -> None:
    verdict = ColdStart().judge(statistics(norm), Baseline())
    assert verdict is not None and verdict.form == "cold-start" and verdict.alarm
    assert ColdStart().judge(statistics(norm, scaled=True), Baseline()) is None


def test_a_first_update_larger_than_the_weights_is_a_cold_start() -> None:
    detector = ColdStart(max_update_ratio=10.0)
    assert detector.judge(statistics(1.0, update_ratio=9.0, weight_excess=1.0, weight_norm=10.0), Baseline()) is None
    verdict = detector.judge(statistics(1e10, update_ratio=11.0), Baseline())
    assert verdict is not None and (verdict.value, verdict.limit) == (11.0, 10.0)


def test_large_weights_alone_are_no_cold_start_but_with_a_loud_gradient_they_are() -> None:
    detector = ColdStart(max_weight_excess=4.0)
    quiet = statistics(1.0, update_ratio=0.01, weight_excess=50.0, weight_norm=10.0)
    loud = statistics(1e3, update_ratio=0.01, weight_excess=50.0, weight_norm=10.0)
    assert detector.judge(quiet, Baseline()) is None
    assert detector.judge(loud, Baseline()) is not None


def test_once_there_is_history_the_start_is_over() -> None:
    assert ColdStart().judge(statistics(1e10, update_ratio=1e10), taught(calm(50))) is None


@pytest.mark.parametrize(
    ("norm", "excess", "expected"), [(1e16, 3.0, True), (1e16, 1.7, False), (1e4, 3.0, False), (1e16, 5.0, True)]
)
def test_gradients_a_million_times_the_weights_make_a_smaller_excess_suspicious(
    norm: float, excess: float, expected: bool
) -> None:
    seen = statistics(norm, update_ratio=0.005, weight_excess=excess, weight_norm=8.2, normalised=True)
    assert (ColdStart().judge(seen, Baseline()) is not None) is expected


@pytest.mark.parametrize(
    ("optimizer", "loss", "expected"), [("SGD", 5.0, True), ("Adam", 5.0, False), ("Adam", 50.0, True)]
)
def test_updates_that_do_not_grow_with_the_gradient_may_overshoot_once(
    optimizer: str, loss: float, expected: bool
) -> None:
    baseline = Baseline()
    baseline.accept(1.0, 1.0)
    seen = statistics(16.0, step=1, loss=loss, moved=0.5, normalised=optimizer == "Adam")
    assert (Spike().judge(seen, baseline) is not None) is expected


# -- the loss as a witness


def test_a_loss_far_beyond_the_untrained_one_is_an_alarm() -> None:
    norms, losses = [*calm(50), *(5.0 * n for n in calm(50))], [2.0] * 50 + [200.0] * 50
    alarms = [step for step, v in run(Divergence(), norms, losses) if v.alarm and not v.examine]
    assert alarms and 50 <= alarms[0] < 60


def test_a_loss_that_climbs_without_its_gradients_is_no_alarm() -> None:
    assert not [v for _, v in run(Divergence(), calm(100), [2.0] * 50 + [200.0] * 50) if v.alarm and not v.examine]


def test_a_loss_that_leaps_but_stays_below_the_untrained_one_only_asks_for_an_examination() -> None:
    losses = np.concatenate([np.full(10, 10.0), np.full(190, 0.1), np.full(60, 3.0)]).tolist()
    assert run(Divergence(), calm(260), losses) == []
    said = run(LossLeap(), calm(260), losses)
    assert all(v.examine for _, v in said) and said[0][0] == 200
    assert [v.form for _, v in said[:2]] == ["sudden", "sudden"], "one leap may be a hard batch"
    assert "divergence" in {v.form for _, v in said}, "one that stays is none"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0] * 60 + [1e6] + [1.0] * 39, [60]),
        ([1.0] * 60 + [math.nan] + [1.0] * 39, [60]),
        ([1.0] * 60 + [1.9] * 40, []),  # within twice the level
        ([-5.0] * 60 + [0.5] + [-5.0] * 39, [60]),
        ([1.0] * 20 + [1e6] + [1.0] * 79, []),  # too young to be surprised
    ],
)
def test_a_single_leap_is_judged_by_level_and_spread(losses: list[float], expected: list[int]) -> None:
    assert [step for step, _ in run(LossLeap(), calm(100), losses)] == expected


def test_one_hard_batch_is_no_divergence() -> None:
    losses = [1.0] * 100
    losses[60] = 1e6
    assert run(Divergence(), calm(100), losses) == []


def test_only_a_treated_run_can_stagnate() -> None:
    for setback, expected in ((None, False), (10, True)):
        baseline, detector, said = Baseline(), Stagnation(), []
        for step, norm in enumerate(calm(300)):
            seen = statistics(norm, step=step, loss=2.3)
            said.append(detector.judge(seen, baseline))
            baseline.accept(norm, 2.3)
            baseline.setback = setback
            detector.accept(seen, baseline)
        assert any(said) is expected


@pytest.mark.parametrize(("fall", "expected"), [(0.0, True), (0.0008, False)])
def test_a_treated_run_that_learns_slowly_does_not_stagnate(fall: float, expected: bool) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.02, 200)
    baseline, detector, said = Baseline(), Stagnation(), []
    baseline.setback, baseline.setbacks = 0, 1
    for step, norm in enumerate(calm(200)):
        loss = 2.3 - fall * step + noise[step]
        said.append(detector.judge(statistics(norm, step=step, loss=loss), baseline))
        baseline.accept(norm, loss)
        detector.accept(statistics(norm, step=step, loss=loss), baseline)
    assert any(said) is expected


def test_a_run_that_died_is_seen_by_its_faded_gradients_and_new_data_are_not() -> None:
    """The loss of dead units may lie below an untrained one that a wide initialisation has inflated."""
    losses = [3.4] * 20 + [0.3] * 100 + [2.3] * 60
    (first, verdict), *_ = run(Stagnation(), calm(120) + calm(60, level=0.1), losses)
    assert verdict.form == "divergence" and verdict.alarm and "faded" in verdict.reason
    assert 120 < first < 150
    for level in (0.5, 1.0, 10.0):  # a new task is loud
        assert run(Stagnation(), calm(120) + calm(60, level=level), losses) == []


@pytest.mark.parametrize(
    ("growth", "last", "expected"),
    [(1.04, 1.2, True), (1.04, 0.3, False), (1.0, 1.2, False)],  # a ramp that takes the loss along; a warm-up; new data
)
def test_a_rate_that_rises_and_takes_the_loss_along_is_an_alarm(growth: float, last: float, expected: bool) -> None:
    baseline, detector, said = Baseline(), RateRise(), []
    for step, norm in enumerate(calm(120)):
        loss = 2.3 if step < 20 else 0.3 if step < 80 else last
        seen = statistics(norm, step=step, loss=loss, rate=0.01 * growth**step)
        said.append(detector.judge(seen, baseline))
        baseline.accept(norm, loss)
        baseline.rate = max(baseline.rate, seen.rate or 0.0)
        detector.accept(seen, baseline)
        if expected:
            baseline.setback = 10
            assert detector.judge(seen, baseline) is None, "a rate that the guard itself lets recover"
            baseline.setback = None
    assert any(said) is expected
    assert not any(said[:85])


# -- vanishing


def test_vanished_gradients_are_reported_and_nothing_more() -> None:
    said = run(Vanishing(), calm(50) + calm(50, level=1e-9), [1.0] * 100)
    assert said and not any(v.alarm for _, v in said)


def test_a_solved_task_may_have_small_gradients() -> None:
    assert run(Vanishing(), calm(50) + calm(50, level=1e-9), [1.0] * 50 + [1e-4] * 50) == []
