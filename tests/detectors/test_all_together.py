"""Healthy norms of every spread, and runs that learn, leave all detectors silent."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradguard.defaults import default_detectors
from tests.builders import calm
from tests.detectors.feeding import run


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
