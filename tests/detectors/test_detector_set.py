"""Detectors are asked in their order, until one raises an alarm; one that fails is left out."""

from __future__ import annotations

import math

import pytest

from lightning_gradguard.detectors import Detector
from lightning_gradguard.detectors.detector_set import DetectorSet
from lightning_gradguard.errors import GuardError
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict
from tests.builders import statistics


class Says(Detector):
    def __init__(self, name: str, *, alarm: bool = True, fails: bool = False, bound: float = math.inf) -> None:
        self.name = name  # type: ignore[misc]
        self.alarm, self.fails, self.bound, self.asked, self.passed = alarm, fails, bound, 0, 0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        self.asked += 1
        if self.fails:
            raise RuntimeError("no idea")
        return Verdict("sudden", self.name, 1.0, 0.5, "it is so", alarm=self.alarm)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        self.passed += 1

    def limit(self, baseline: Baseline) -> float:
        return self.bound


def test_after_an_alarm_nobody_else_is_asked() -> None:
    asked = DetectorSet([Says("a", alarm=False), Says("b"), Says("c")])
    assert [v.detector for v in asked.judge(statistics(1.0), Baseline())] == ["a", "b"]
    assert [d.asked for d in asked] == [1, 1, 0]  # type: ignore[attr-defined]


def test_one_that_fails_is_named_and_left_out_for_good() -> None:
    told: list[GuardError] = []
    asked = DetectorSet([Says("a", fails=True), Says("b")], told.append)
    for _ in range(2):
        assert [v.detector for v in asked.judge(statistics(1.0), Baseline())] == ["b"]
    asked.forget()
    assert [d.name for d in asked] == ["b"] and len(told) == 1 and "no idea" in str(told[0])
    with pytest.raises(GuardError):
        DetectorSet([Says("a", fails=True)]).judge(statistics(1.0), Baseline())


def test_the_least_limit_counts_and_one_that_is_nan_lets_nothing_pass() -> None:
    assert DetectorSet([Says("a", bound=5.0), Says("b", bound=3.0)]).limit(Baseline()) == 3.0
    assert DetectorSet([Says("a", bound=5.0), Says("b", bound=math.nan)]).limit(Baseline()) == 0.0
    assert DetectorSet([]).limit(Baseline()) == math.inf


def test_prototypes_learn_nothing() -> None:
    first = Says("a")
    asked = DetectorSet([first])
    asked.accept(statistics(1.0), Baseline())
    (own,) = asked
    assert own.passed == 1 and first.passed == 0  # type: ignore[attr-defined]
