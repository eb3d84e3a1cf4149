"""The rates of accepted steps, and the size of their updates."""

from __future__ import annotations

import math

import pytest

from lightning_gradguard.history.baseline import Baseline


def test_a_rate_leaps_from_where_it_was_measured_last() -> None:
    known = Baseline()
    assert not known.updates.rate_leapt(1.0), "it was never measured"
    known.updates.looked = 0.1
    assert [known.updates.rate_leapt(rate) for rate in (0.29, 0.31, None)] == [False, True, False]


def test_the_usual_rate_follows_the_rates_of_late() -> None:
    baseline = Baseline()
    for rate in (0.0, 0.1, 0.1):
        baseline.updates.accept_rate(rate)
    assert baseline.updates.usual_rate == 0.1
    for _ in range(64):
        baseline.updates.accept_rate(1.0)
    assert baseline.updates.usual_rate == pytest.approx(10 ** -math.exp(-1.0), rel=0.02), (
        "after one time constant 1/e is left"
    )
