"""The norms of accepted steps, against a brute-force reference in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import ENOUGH, NORM_WINDOW, RECENT
from tests.builders import calm, taught

NORMS = st.floats(1e-30, 1e30)
ANYTHING = st.one_of(NORMS, st.sampled_from([0.0, math.nan, math.inf, 1e-45]))


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
    assert 0.07 < flat.norms.spread < 0.15 and rising.norms.spread < 0.2
    assert float(np.std(kept([n * 10 ** (i / NORM_WINDOW) for i, n in enumerate(ripples)]))) > 0.6


@given(st.lists(ANYTHING, min_size=1, max_size=NORM_WINDOW * 2 + 10))
def test_quantiles_spread_and_medians_agree_with_brute_force(norms: list[float]) -> None:
    baseline, logs = taught(norms), kept(norms)
    assert baseline.count == len(norms)
    if not len(logs):
        assert math.isnan(baseline.norms.center) and math.isnan(baseline.norms.typical) and baseline.norms.spread == 0.0
        return
    assert baseline.norms.center == pytest.approx(nearest(logs, 0.5), rel=1e-12)
    assert baseline.norms.recent == pytest.approx(sorted(logs[-RECENT:])[len(logs[-RECENT:]) // 2], rel=1e-12)
    assert baseline.norms.typical == pytest.approx(math.exp(max(baseline.norms.center, baseline.norms.recent)))
    if len(logs) > 1:
        quartiles = (nearest(logs, 0.75) - nearest(logs, 0.25)) / 1.349
        decile = (nearest(logs, 0.9) - nearest(logs, 0.5)) / 1.2816
        wide = max(quartiles, decile)
        now = [value - sorted(logs[max(i - RECENT, 0) : i])[min(i, RECENT) // 2] for i, value in enumerate(logs) if i]
        if len(norms) <= NORM_WINDOW and len(now) >= ENOUGH:
            about = [nearest(np.array(now), q) for q in (0.25, 0.5, 0.75, 0.9)]
            wide = min(wide, max((about[2] - about[0]) / 1.349, (about[3] - about[1]) / 1.2816))
        assert len(norms) > NORM_WINDOW or baseline.norms.spread == pytest.approx(wide)
    assert logs[-1] - 1e-9 <= baseline.norms.high_water <= logs.max() + 1e-9 or len(norms) > NORM_WINDOW


def test_one_outlier_moves_neither_center_nor_spread_much() -> None:
    norms = calm(100)
    clean, outlier = taught(norms), taught([*norms, 1e30])
    assert outlier.norms.center == pytest.approx(clean.norms.center, abs=0.1)
    assert outlier.norms.spread == pytest.approx(clean.norms.spread, rel=0.2)


def test_the_high_water_mark_sinks_slowly_and_never_below_the_present() -> None:
    baseline = taught([1e6])
    marks = []
    for _ in range(3000):
        baseline.accept(1.0, None)
        marks.append(baseline.norms.high_water)
    assert marks == sorted(marks, reverse=True)
    assert 0.0 < marks[-1] < math.log(1e6)


def test_a_norm_that_was_lived_with_once_is_lived_with_again() -> None:
    baseline = taught([1e6])
    for _ in range(5000):
        baseline.accept(1.0, None)
    assert baseline.norms.high_water == pytest.approx(math.log(1e6) - 1.0, abs=0.01)


@pytest.mark.parametrize(("level", "expected"), [(1e-3, True), (0.05, False), (1.0, False)])
def test_gradients_have_faded_at_a_hundredth(level: float, expected: bool) -> None:
    known = taught(calm(100) + calm(20, level=level))
    assert [known.norms.faded(since_first=first) for first in (True, False)] == [expected] * 2


def test_gradients_have_faded_since_the_first_or_of_late() -> None:
    large = taught([1e3] * 9 + calm(100))
    assert large.norms.faded(since_first=True) and not large.norms.faded(since_first=False)
    risen = taught(calm(9, level=1e-4) + calm(100) + calm(20, level=1e-3))
    assert risen.norms.faded(since_first=False) and not risen.norms.faded(since_first=True)
    dead = taught(calm(9) + calm(300, level=1e-3))
    assert dead.norms.faded(since_first=True) and not dead.norms.faded(since_first=False), (
        "the window has faded with them"
    )
    assert not any(Baseline().norms.faded(since_first=first) for first in (True, False))


def test_zero_gradients_are_counted_until_one_comes() -> None:
    known = taught([1.0] * 5 + [0.0] * 7)
    assert known.norms.silent == 7
    known.accept(1.0, None)
    assert known.norms.silent == 0
