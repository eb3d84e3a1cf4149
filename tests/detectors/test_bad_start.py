"""What can be said of a first step."""

from __future__ import annotations

import math

import pytest

from lightning_gradguard.detectors import BadStart
from lightning_gradguard.detectors.bad_start import AFTER, LARGEST
from lightning_gradguard.history.baseline import Baseline
from tests.builders import statistics, taught


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_first_gradient_that_is_not_finite_is_a_cold_start(norm: float) -> None:
    verdict = BadStart().judge(statistics(norm), Baseline())
    assert verdict is not None and verdict.form == "cold-start" and verdict.alarm
    assert BadStart().judge(statistics(norm, scaled=True), Baseline()) is None


def test_a_first_gradient_that_adam_would_long_remember_is_seen_in_hindsight() -> None:
    norms = [1e5, 0.3, 0.4, 0.3]
    seen = [BadStart().judge(statistics(0.3, normalised=True), taught(norms[:n])) for n in (1, 2, 3, 4)]
    assert seen[:3] == [None] * 3
    assert seen[3] is not None and (seen[3].form, seen[3].value) == ("cold-start", pytest.approx(1e5))
    assert BadStart().judge(statistics(0.3), taught(norms)) is None  # SGD has no memory of it
    assert BadStart().judge(statistics(0.3, normalised=True), taught([20.0, 0.3, 0.4, 0.3])) is None
    assert BadStart().judge(statistics(0.3, normalised=True), taught([*norms, 0.3])) is None


def test_large_weights_updates_and_gradients_alone_are_no_bad_start() -> None:
    """Those of a trained model may be so; what they come to, its losses say."""
    large = statistics(1e6, update_ratio=50.0)
    assert BadStart().judge(large, Baseline()) is None


@pytest.mark.parametrize(("norm", "seen"), [(0.9 * LARGEST, False), (1.1 * LARGEST, True)])
def test_a_norm_whose_square_overflows_is_a_cold_start_while_there_is_no_history(norm: float, seen: bool) -> None:
    verdict = BadStart().judge(statistics(norm), Baseline())
    assert (verdict is not None) is seen
    assert BadStart().judge(statistics(norm), taught([1.0])) is None
    assert BadStart().limit(Baseline()) == LARGEST and BadStart().limit(taught([1.0])) == math.inf


@pytest.mark.parametrize(("growth", "seen"), [(99.0, False), (101.0, True), (math.inf, True), (math.nan, True)])
def test_a_signal_that_explodes_on_its_way_is_an_alarm_from_the_second_step(growth: float, seen: bool) -> None:
    said = [BadStart().judge(statistics(1.0, growth=growth), taught([1.0] * n)) for n in range(AFTER + 2)]
    assert [verdict is not None for verdict in said] == [False, *[seen] * AFTER, False]
    assert all(verdict is None or verdict.form == "cold-start" for verdict in said)
    assert BadStart(max_growth=200.0).judge(statistics(1.0, growth=101.0), taught([1.0])) is None
