"""The sudden form: what a history calls a spike, and what excuses one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.baseline import Baseline
from lightning_gradguard.detectors import Spike
from tests.builders import calm, statistics, taught


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
