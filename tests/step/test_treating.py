"""An alarm is decided, acted on, and recorded; who only watches does nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_gradguard.step.copying import moved_too_far
from lightning_gradguard.step.treating import treat
from lightning_gradguard.treatment import own_verdicts
from tests.step.loop import Loop, alarm


def treated(loop: Loop, by: float, form: Any = "sudden", limit: float = 1.0) -> Any:
    context = loop.measured(by)
    return treat(loop.run, loop.track, context, alarm(context.statistics, form, limit), (), None), context


def test_a_gentle_spike_is_clipped_to_what_is_usual_and_learned_from() -> None:
    loop = Loop()
    count, usual = loop.track.baseline.count, loop.track.baseline.norms.typical
    context = loop.measured(20.0)
    limit = context.statistics.norm / 5.0
    report = treat(loop.run, loop.track, context, alarm(context.statistics, limit=limit), (), None)
    assert [o.remedy for o in report.outcomes] == ["clip"] and not report.skipped
    grads = torch.stack([p.grad.norm() for p in loop.network.parameters() if p.grad is not None])
    assert float(grads.norm()) <= 4 * usual
    assert loop.track.baseline.count == count + 1


def test_what_is_not_finite_is_skipped_and_not_learned_from() -> None:
    loop = Loop()
    count = loop.track.baseline.count
    report, _ = treated(loop, math.nan, "non-finite")
    assert report.skipped and loop.track.baseline.count == count


def test_who_only_watches_records_and_changes_nothing() -> None:
    loop = Loop(mode="watch")
    context = loop.measured(1e6)
    before = [p.grad.clone() for p in loop.network.parameters() if p.grad is not None]
    report = treat(loop.run, loop.track, context, alarm(context.statistics), (), None)
    after = [p.grad for p in loop.network.parameters() if p.grad is not None]
    assert report.outcomes == () and not report.stop and all(map(torch.equal, before, after))
    assert len(loop.guard.incidents) == 1


def test_a_batch_that_was_used_up_is_skipped_without_asking_the_policy() -> None:
    loop = Loop()
    context = loop.measured()
    verdict = own_verdicts.used_up(context.statistics, "drawn anew")
    report = treat(loop.run, loop.track, context, verdict, (), None)
    assert report.skipped and loop.track.policy.strikes == 0


@pytest.mark.parametrize(("by", "expected"), [(0.0, False), (100.0, True)])
def test_weights_that_no_update_can_have_carried_so_far_are_noticed(by: float, expected: bool) -> None:
    loop = Loop()
    treated(loop, math.nan, "non-finite")
    with torch.no_grad():
        for p in loop.network.parameters():
            p.mul_(1.0 + by)
    assert moved_too_far(loop.track) is expected


def test_an_optimizer_that_is_treated_for_its_numbers_is_the_culprit() -> None:
    loop = Loop()
    loop.optimizer.param_groups[0]["momentum"] = 0.995
    with torch.no_grad():
        next(loop.network.parameters())[0] = math.nan
    assert loop.step().decision.cause == "optimizer settings"
    [incident] = loop.guard.incidents
    assert incident.culprit == "optimizer" and incident.blame[0].kind == "momentum" and incident.blame[1].broken
    assert incident.blame[1].weight_ratio is None, "what is not finite has no size"


def test_nan_that_no_treatment_cures_is_one_incident() -> None:
    loop = Loop()
    for _ in range(90):
        loop.step(by=math.nan)
    assert len(loop.guard.incidents) == 1 and len({trial.treatment for trial in loop.guard.incidents[0].trials}) <= 2
