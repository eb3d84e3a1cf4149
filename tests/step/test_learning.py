"""What teaches, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradguard.step.learning import accept, learn_anew, reject
from tests.step.loop import Loop


def test_a_step_that_was_clipped_counts_with_the_norm_that_was_let_through() -> None:
    loop = Loop()
    found = replace(loop.measured().statistics, norm=1e9)
    accept(loop.track, found, 2.0)
    assert loop.track.baseline.norms.log_norms[-1] == pytest.approx(0.693, abs=1e-3)


@pytest.mark.parametrize(("limit", "learned"), [(1e9, True), (1e-9, False)])
def test_the_size_of_an_update_counts_only_where_nothing_was_clipped(limit: float, learned: bool) -> None:
    loop = Loop()
    accept(loop.track, replace(loop.measured().statistics, update_ratio=5.0), limit)
    assert (loop.track.baseline.updates.ratio >= 5.0) is learned


def test_the_update_of_one_large_step_tells_nothing_of_the_others() -> None:
    loop = Loop()
    typical = loop.track.baseline.norms.typical
    for norm, learned in ((20.0 * typical, False), (typical, True)):
        accept(loop.track, replace(loop.measured().statistics, norm=norm, update_ratio=5.0), 1e9)
        assert (loop.track.baseline.updates.ratio >= 5.0) is learned
        assert loop.track.baseline.updates.reach(1.0, 1.0) > 0.0, "what it was is known"


def test_a_skipped_step_leaves_no_loss_behind() -> None:
    loop = Loop()
    loop.track.joint_loss.own = [1.0, 2.0]
    count = loop.track.baseline.count
    reject(loop.track, loop.measured().statistics)
    assert loop.track.joint_loss.own == [1.0] and loop.track.baseline.count == count


def test_another_regime_is_learned_anew_but_for_the_rates() -> None:
    loop = Loop()
    learn_anew(loop.track)
    assert loop.track.baseline.count == 0 and not loop.track.untouched
    assert loop.track.baseline.updates.rate == 0.01
