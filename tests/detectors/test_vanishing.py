"""Gradients that have all but disappeared."""

from __future__ import annotations

from lightning_gradguard.detectors import Vanishing
from tests.builders import calm
from tests.detectors.feeding import run


def test_vanished_gradients_are_reported_and_nothing_more() -> None:
    said = run(Vanishing(), calm(50) + calm(50, level=1e-9), [1.0] * 100)
    assert said and not any(v.alarm for _, v in said)


def test_a_solved_task_may_have_small_gradients() -> None:
    assert run(Vanishing(), calm(50) + calm(50, level=1e-9), [1.0] * 50 + [1e-4] * 50) == []
