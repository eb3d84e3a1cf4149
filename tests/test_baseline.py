"""The baseline against a brute-force reference in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.baseline import ENOUGH, INSANE, NORM_WINDOW, RECENT, Baseline
from tests.builders import calm, same, taught, through_a_file

NORMS = st.floats(1e-30, 1e30)
ANYTHING = st.one_of(NORMS, st.sampled_from([0.0, math.nan, math.inf, 1e-45]))
LOSSES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf]))


def kept(norms: list[float]) -> np.ndarray:
    """The log norms that a baseline must remember."""
    return np.log([n for n in norms if math.isfinite(n) and n > 1e-38])[-NORM_WINDOW:]


def nearest(values: np.ndarray, q: float) -> float:
    """Quantile by the nearest rank, ties to even."""
    return float(np.sort(values)[round(q * (len(values) - 1))])


def test_a_trend_is_no_noise() -> None:
    """A norm that grows tenfold over the window has the spread of its ripples, not of its growth."""
    ripples = calm(NORM_WINDOW, level=1.0, spread=0.1)
    flat, rising = taught(ripples), taught([n * 10 ** (i / NORM_WINDOW) for i, n in enumerate(ripples)])
    assert 0.07 < flat.spread < 0.15 and rising.spread < 0.2
    assert float(np.std(kept([n * 10 ** (i / NORM_WINDOW) for i, n in enumerate(ripples)]))) > 0.6


@given(st.lists(ANYTHING, min_size=1, max_size=NORM_WINDOW * 2 + 10))
def test_quantiles_spread_and_medians_agree_with_brute_force(norms: list[float]) -> None:
    baseline, logs = taught(norms), kept(norms)
    assert baseline.count == len(norms)
    if not len(logs):
        assert math.isnan(baseline.center) and math.isnan(baseline.typical) and baseline.spread == 0.0
        return
    assert baseline.center == pytest.approx(nearest(logs, 0.5), rel=1e-12)
    assert baseline.recent == pytest.approx(sorted(logs[-RECENT:])[len(logs[-RECENT:]) // 2], rel=1e-12)
    assert baseline.typical == pytest.approx(math.exp(max(baseline.center, baseline.recent)))
    if len(logs) > 1:
        quartiles = (nearest(logs, 0.75) - nearest(logs, 0.25)) / 1.349
        decile = (nearest(logs, 0.9) - nearest(logs, 0.5)) / 1.2816
        wide = max(quartiles, decile)
        now = [value - sorted(logs[max(i - RECENT, 0) : i])[min(i, RECENT) // 2] for i, value in enumerate(logs) if i]
        if len(norms) <= NORM_WINDOW and len(now) >= ENOUGH:
            about = [nearest(np.array(now), q) for q in (0.25, 0.5, 0.75, 0.9)]
            wide = min(wide, max((about[2] - about[0]) / 1.349, (about[3] - about[1]) / 1.2816))
        assert len(norms) > NORM_WINDOW or baseline.spread == pytest.approx(wide)
    assert logs[-1] - 1e-9 <= baseline.high_water <= logs.max() + 1e-9 or len(norms) > NORM_WINDOW


@given(st.lists(st.tuples(ANYTHING, LOSSES), max_size=200), st.integers(0, 200))
def test_state_round_trips_at_any_point(steps: list[tuple[float, float | None]], cut: int) -> None:
    whole, first = Baseline(), Baseline()
    for norm, loss in steps[:cut]:
        first.accept(norm, loss)
    second = Baseline()
    second.load_state_dict(through_a_file(first.state_dict()))
    for index, (norm, loss) in enumerate(steps):
        whole.accept(norm, loss)
        if index >= cut:
            second.accept(norm, loss)
    assert same(whole.state_dict(), second.state_dict())
    assert same((whole.center, whole.spread, whole.recent), (second.center, second.spread, second.recent))


@given(st.lists(NORMS, min_size=1, max_size=40), st.lists(st.sampled_from([math.nan, math.inf, 0.0]), max_size=20))
def test_what_is_not_finite_or_zero_teaches_nothing(norms: list[float], bad: list[float]) -> None:
    baseline = taught(norms)
    before = (baseline.center, baseline.spread, baseline.recent, baseline.high_water, baseline.typical)
    for norm in bad:
        baseline.accept(norm, norm or math.nan)
    assert (baseline.center, baseline.spread, baseline.recent, baseline.high_water, baseline.typical) == before
    assert math.isnan(baseline.loss_level()[0])


def test_one_outlier_moves_neither_center_nor_spread_much() -> None:
    norms = calm(100)
    clean, outlier = taught(norms), taught([*norms, 1e30])
    assert outlier.center == pytest.approx(clean.center, abs=0.1)
    assert outlier.spread == pytest.approx(clean.spread, rel=0.2)


def test_the_high_water_mark_sinks_slowly_and_never_below_the_present() -> None:
    baseline = taught([1e6])
    marks = []
    for _ in range(3000):
        baseline.accept(1.0, None)
        marks.append(baseline.high_water)
    assert marks == sorted(marks, reverse=True)
    assert 0.0 < marks[-1] < math.log(1e6)


def test_loss_level_is_a_median_of_the_last_losses() -> None:
    losses = [float(v) for v in range(60)]
    baseline = taught([1.0] * 60, losses)
    assert baseline.loss_level()[0] == pytest.approx(np.median(losses), abs=0.5)
    assert baseline.loss_level(RECENT)[0] == np.median(losses[-RECENT:])
    assert baseline.first_losses == losses[:RECENT]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_counts_as_elevated(loss: float) -> None:
    assert taught([1.0] * 9, [1.0] * 9).loss_elevated(loss) is True


def test_without_losses_nothing_is_said_of_them() -> None:
    assert taught([1.0] * 9).loss_elevated(1.0) is None
    assert taught([1.0] * 9, [1.0] * 9).loss_elevated(None) is None
    assert math.isnan(Baseline().untrained_loss)


def test_memory_is_bounded() -> None:
    baseline = taught(calm(5000), calm(5000))
    assert all(len(v) <= NORM_WINDOW for v in baseline.state_dict().values() if isinstance(v, list))


def test_after_insane_updates_only_the_first_loss_is_untrained() -> None:
    losses = [2.3, 2.6, 2.7, 2.8, 2.7, 2.6, 2.5, 2.4, 2.4, *[2.3] * 50]
    sane, insane = taught(calm(59), losses), taught(calm(59), losses)
    insane.update_ratio = 2 * INSANE
    assert (sane.untrained_loss, insane.untrained_loss) == (2.4, 2.3)
    assert not insane.learned


@pytest.mark.parametrize(("best", "now", "expected"), [(1.3, 2.4, True), (1.3, 2.0, False), (2.0, 2.4, False)])
def test_a_run_that_is_back_where_it_began_has_lost_what_it_had_learned(
    best: float, now: float, expected: bool
) -> None:
    baseline = taught([1.0] * 60, [2.3] * 20 + [best] * 20 + [now] * 20)
    assert baseline.lost is expected


def test_a_loss_that_has_been_negative_has_no_scale_to_be_lost_on() -> None:
    assert not taught([1.0] * 60, [0.14] * 20 + [-0.48] * 20 + [0.11] * 20).lost
