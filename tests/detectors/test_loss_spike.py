"""A loss that leapt asks for a look, and for no more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradguard.detectors import LossSpike, Overshoot
from tests.builders import calm
from tests.detectors.feeding import run


def test_a_loss_that_leaps_but_stays_below_the_untrained_one_only_asks_for_an_examination() -> None:
    losses = np.concatenate([np.full(10, 10.0), np.full(190, 0.1), np.full(60, 3.0)]).tolist()
    assert run(Overshoot(), calm(260), losses) == []
    said = run(LossSpike(), calm(260), losses)
    assert all(v.examine for _, v in said) and said[0][0] == 200
    assert [v.form for _, v in said[:2]] == ["sudden", "sudden"], "one leap may be a hard batch"
    assert "divergence" in {v.form for _, v in said}, "one that stays is none"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0] * 60 + [1e6] + [1.0] * 39, [60]),
        ([1.0] * 60 + [math.nan] + [1.0] * 39, [60]),
        ([1.0] * 60 + [1.9] * 40, []),  # within twice the level
        ([-5.0] * 60 + [0.5] + [-5.0] * 39, [60]),
        ([1.0] * 20 + [50.0] + [1.0] * 79, []),  # too young to be surprised
    ],
)
def test_a_single_leap_is_judged_by_level_and_spread(losses: list[float], expected: list[int]) -> None:
    assert [step for step, _ in run(LossSpike(), calm(100), losses)] == expected


@pytest.mark.parametrize(("leapt", "asked"), [(50.0, False), (1e5, True)])
def test_a_young_runs_batch_is_looked_at_where_the_loss_is_a_hundred_times_the_largest(
    leapt: float, asked: bool
) -> None:
    said = run(LossSpike(), [1.0] * 9, [9.0, 5.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, leapt])
    assert [(step, v.form, v.examine) for step, v in said] == ([(8, "sudden", True)] if asked else [])
