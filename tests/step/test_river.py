"""The way of one step: measured, judged, treated or let through, and noted."""

from __future__ import annotations

import math

from lightning_gradguard.step import Step, StepInputs
from tests.step.loop import Loop


def test_a_calm_step_is_learned_from_and_noted_as_clean() -> None:
    loop = Loop()
    before, steps = loop.track.baseline.count, loop.track.steps
    report = Step(loop.run).go_on(loop.track, loop.measured(), StepInputs())
    assert report.verdict is None and not report.skipped
    assert (loop.track.baseline.count, loop.track.steps) == (before + 1, steps + 1)
    assert loop.track.last is report.statistics and loop.guard.incidents == ()


def test_a_bad_step_is_treated_and_teaches_nothing() -> None:
    loop = Loop()
    before, steps = loop.track.baseline.count, loop.track.steps
    report = Step(loop.run).go_on(loop.track, loop.measured(math.nan), StepInputs(batch_index=7))
    assert report.verdict is not None and report.decision is not None and report.skipped
    assert (loop.track.baseline.count, loop.track.steps) == (before, steps + 1)
    assert loop.guard.incidents[-1].batch == 7
    assert all(p.grad is None for p in loop.network.parameters())
