"""The rank test against scipy's, and what its users rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.history.ranks import chance_of_lower

SMALL = st.integers(-5, 5).map(float)  # with many ties
ANY = st.one_of(SMALL, st.floats(-1e6, 1e6), st.just(math.inf), st.just(-math.inf))
SAMPLES = st.lists(ANY, min_size=1, max_size=40)


@given(SAMPLES, SAMPLES)
def test_it_agrees_with_scipy(losses: list[float], others: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    if len({*losses, *others}) == 1:
        assert chance_of_lower(losses, others) == 1.0, "of equal values nothing can be said"
        return
    wanted = stats.mannwhitneyu(losses, others, alternative="less", method="asymptotic").pvalue
    assert chance_of_lower(losses, others) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@given(SAMPLES, SAMPLES)
def test_sign_and_scale_do_not_matter(losses: list[float], others: list[float]) -> None:
    doubled = [4.0 * v for v in losses], [4.0 * v for v in others]
    assert chance_of_lower(*doubled) == chance_of_lower(losses, others)
    mirrored = [-v for v in others], [-v for v in losses]
    assert chance_of_lower(*mirrored) == pytest.approx(chance_of_lower(losses, others), rel=1e-9)


def test_a_nan_is_the_worst_of_losses() -> None:
    good, bad = [1.0, 2.0, 3.0] * 5, [math.nan] * 15
    assert chance_of_lower(good, bad) < 1e-5 < 0.99 < chance_of_lower(bad, good)
    assert chance_of_lower(bad, [math.inf] * 15) == 1.0


@pytest.mark.parametrize(("losses", "others"), [([], [1.0]), ([1.0], []), ([], [])])
def test_of_nothing_nothing_can_be_said(losses: list[float], others: list[float]) -> None:
    assert chance_of_lower(losses, others) == 1.0


@pytest.mark.parametrize("level", [0.01, 0.05])
def test_two_windows_of_one_kind_differ_as_often_as_the_level_says(level: float) -> None:
    """With tails as heavy as they come: a Cauchy distribution has no mean."""
    draws = np.random.default_rng(0).standard_cauchy((4000, 2, 16))
    found = np.mean([chance_of_lower(a, b) < level for a, b in draws.tolist()])
    assert 0.5 * level < found < 1.4 * level


def test_two_windows_a_deviation_apart_are_told_apart() -> None:
    draws = np.random.default_rng(0).standard_normal((500, 2, 16))
    draws[:, 0] -= 1.5
    assert np.mean([chance_of_lower(a, b) < 0.01 for a, b in draws.tolist()]) > 0.9
