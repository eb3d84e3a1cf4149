"""NaN and inf, and the overflow that a GradScaler expects."""

from __future__ import annotations

import math

import pytest

from lightning_gradguard.detectors import NonFinite
from lightning_gradguard.history.baseline import Baseline
from tests.builders import calm, statistics, taught


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
