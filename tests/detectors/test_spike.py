"""The sudden form: what a history calls a spike, and what excuses one."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.detectors import Spike
from lightning_gradguard.history.baseline import Baseline
from tests.builders import calm, statistics, taught
from tests.detectors.feeding import run


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
@given(seed=st.integers(0, 10**6), level=st.floats(1e-6, 1e6))
def test_a_thousandfold_spike_is_seen_and_calm_is_not(spread: float, seed: int, level: float) -> None:
    baseline = taught(calm(60, level=level, spread=spread, seed=seed))
    verdict = Spike().judge(statistics(level * 1e3), baseline)
    assert verdict is not None and verdict.form == "sudden" and verdict.alarm
    assert verdict.value == level * 1e3 > verdict.limit >= level
    assert Spike().judge(statistics(baseline.norms.typical), baseline) is None


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


def test_a_young_runs_spike_is_one_only_where_large_updates_have_come_to_nothing() -> None:
    def young(ratio: float, losses: list[float]) -> Baseline:
        baseline = Baseline()
        baseline.updates.accept(ratio)
        for loss in losses:
            baseline.accept(1.0, loss)
        return baseline

    spike, leapt = Spike(), statistics(500.0, loss=30.0)
    assert spike.judge(leapt, young(1.0, [2.0, 2.5, 2.2])) is not None
    assert spike.judge(leapt, young(0.01, [2.0, 2.5, 2.2])) is None, "small updates do no such harm"
    assert spike.judge(leapt, young(1.0, [2.0, 0.5, 0.4])) is None, "it had learned with them"
    assert spike.judge(statistics(2000.0, loss=2.0), young(0.01, [2.0])) is not None, "no tail is so long"


@pytest.mark.parametrize(("ratio", "asked"), [(1e-3, True), (1.0, False), (0.0, False)])
def test_a_young_spike_after_small_updates_accuses_nobody_by_itself(ratio: float, asked: bool) -> None:
    """Whose weights are what they were has met a hard batch, or was solved: only a batch or a layer found at fault is
    treated."""
    ((_, verdict),) = run(Spike(), [1e-7] * 5 + [1.0], [1e-12] * 5 + [1e-6], ratio=ratio)
    assert verdict.examine is asked


@pytest.mark.parametrize(("ratio", "alarm"), [(0.5, False), (5.0, True)])
def test_a_young_spike_that_would_replace_all_weights_is_one_at_once(ratio: float, alarm: bool) -> None:
    baseline = taught([8.0] * 5, [9.0] * 5)
    assert (Spike().judge(statistics(900.0, loss=6e5, update_ratio=ratio), baseline) is not None) is alarm


@pytest.mark.parametrize(
    ("norm", "ratio", "examine"),
    [(20.0, 0.02, True), (20.0, 0.2, False), (20.0, None, False), (900.0, 0.02, False)],
    ids=["small", "large", "unknown", "not worth following"],
)
def test_a_spike_whose_update_is_known_to_be_small_asks_only_for_batch_and_layers(
    norm: float, ratio: float | None, examine: bool
) -> None:
    verdict = Spike().judge(statistics(norm, update_ratio=ratio), taught(calm(100)))
    assert verdict is not None and verdict.examine is examine


def test_a_spike_is_judged_by_its_own_update_where_that_was_measured() -> None:
    """Of batches of one sample some make a hundred times the update of others, and the run has learned with them."""
    baseline = taught(calm(100))
    baseline.updates.ratio = 0.15
    assert (small := Spike().judge(statistics(40.0, update_ratio=0.03), baseline)) is not None and small.examine
    assert (unknown := Spike().judge(statistics(40.0), baseline)) is not None and not unknown.examine


def test_a_spike_where_updates_go_by_signs_asks_only_for_batch_and_layers() -> None:
    found = dataclasses.replace(statistics(900.0, update_ratio=0.2), by_sign=True)
    verdict = Spike().judge(found, taught(calm(100)))
    assert verdict is not None and verdict.examine


@pytest.mark.parametrize(
    ("normalised", "ratio", "examine"), [(True, 0.0, True), (False, 0.0, False), (True, None, False)]
)
def test_a_spike_of_what_holds_no_matrix_is_harmless_where_updates_do_not_grow_with_it(
    normalised: bool, ratio: float | None, examine: bool
) -> None:
    """A temperature of a network that is nearly always right: its first gradients are all but zero."""
    found = dataclasses.replace(statistics(900.0, update_ratio=ratio), normalised=normalised)
    verdict = Spike().judge(found, taught([1e-3]))
    assert verdict is not None and verdict.examine is examine


def test_the_wider_limit_of_a_young_run_excuses_no_larger_norms() -> None:
    """Nothing is known of the tail yet, so what is let through must lie close to what history explains."""
    young = taught(calm(20), calm(20))
    small = statistics(5e3, loss=1.0, update_ratio=0.02)
    verdict = Spike().judge(small, young)
    assert verdict is not None and verdict.gentle and not verdict.examine
