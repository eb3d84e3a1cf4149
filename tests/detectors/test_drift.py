"""Slow growth that no single step betrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradguard.detectors import Drift
from tests.builders import calm, statistics, taught
from tests.detectors.feeding import run


def growing(steps: int, factor: float, before: int = 200) -> list[float]:
    norms = calm(before + steps)
    growth = np.concatenate([np.ones(before), np.exp(np.linspace(0, math.log(factor), steps))])
    return (np.array(norms) * growth).tolist()


def test_a_thousandfold_drift_over_300_steps_is_seen_early() -> None:
    losses = [1.0] * 200 + np.linspace(1.0, 4.0, 300).tolist()
    said = run(Drift(), growing(300, 1e3), losses)
    assert said and 200 <= said[0][0] <= 250
    alarms = [step for step, v in said if v.alarm]
    assert alarms and alarms[0] < 300
    assert all(v.examine for _, v in said if v.alarm), (
        "it asks for a look at the layers; whether the run is lost, its losses say"
    )
    assert all(v.form == "drift" for _, v in said)


def test_growth_that_a_falling_loss_excuses_is_no_fault() -> None:
    losses = [1.0] * 200 + np.linspace(1.0, 0.2, 300).tolist()
    assert [v for _, v in run(Drift(), growing(300, 20.0), losses) if v.alarm] == []


def test_one_outlier_is_no_drift() -> None:
    norms = calm(300)
    norms[250] = 1e6
    assert run(Drift(), norms, [1.0] * 300) == []


def test_a_norm_that_grows_by_half_is_not_worth_a_word() -> None:
    assert run(Drift(), growing(300, 1.5), [1.0] * 500) == []


def test_a_norm_that_leapt_is_reported_and_no_more() -> None:
    norms = calm(200) + calm(100, level=50.0)
    said = run(Drift(), norms, [1.0] * 200 + np.linspace(1.0, 4.0, 100).tolist())
    assert said and not any(v.alarm for step, v in said if step < 215)


@pytest.mark.parametrize(("norm", "loss", "told"), [(2e3, -5e3, True), (2e3, -500.0, False), (500.0, -5e3, False)])
def test_a_loss_that_falls_without_bound_is_reported_and_nothing_more(norm: float, loss: float, told: bool) -> None:
    baseline = taught(calm(60, spread=0.01), calm(60, level=1.5, spread=0.01))
    verdict = Drift().judge(statistics(norm, loss=loss), baseline)
    assert (verdict is not None and not verdict.alarm and "lower bound" in verdict.reason) is told


@pytest.mark.parametrize(
    ("norm", "loss", "lost", "unbounded"),
    [(2e6, -3e6, True, True), (2e6, 3e6, True, False), (5e5, -3e6, False, False), (2e6, 1e6, False, False)],
)
def test_a_million_times_what_norm_and_loss_were_is_a_run_that_is_lost(
    norm: float, loss: float, lost: bool, unbounded: bool
) -> None:
    baseline = taught(calm(60, spread=0.01), calm(60, level=1.5, spread=0.01))
    verdict = Drift().judge(statistics(norm, loss=loss), baseline)
    assert (verdict is not None and verdict.alarm and verdict.diverges) is lost
    assert (verdict is not None and verdict.unbounded) is unbounded
