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


def test_what_an_update_will_be_is_told_by_the_last_that_was_measured() -> None:
    updates = Baseline().updates
    updates.measure(0.0, norm=4.0, rate=0.1, grows=True)
    assert updates.reach(0.1, 1.0) == 0.0 and not updates.measured, "none was measured: there are no matrices"
    updates.measure(0.02, norm=4.0, rate=0.1, grows=True)
    assert (
        updates.measured
        and updates.reach(0.1, 0.1) == pytest.approx(20.0)
        and updates.reach(0.1, 0.2) == pytest.approx(10.0)
    )
    assert updates.reach(0.1, None) == 0.0 and updates.reach(0.1, 0.0) == math.inf
    updates.measure(0.02, norm=4.0, rate=0.1, grows=False)
    assert updates.reach(0.1, 0.1) == math.inf and updates.reach(0.1, 0.6) == 0.0


def test_a_rate_far_above_the_usual_one_is_not_known_to_be_good() -> None:
    updates = Baseline().updates
    assert not updates.risen(1.0), "none is usual"
    updates.accept_rate(0.1)
    assert [updates.risen(rate) for rate in (0.29, 0.31, None)] == [False, True, False]
