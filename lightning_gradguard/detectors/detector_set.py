"""The detectors of one optimizer, asked one after the other; one that fails is named, and may be left out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.errors import GuardError, Isolation, expected, overrides
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict


class DetectorSet:
    """Ask copies of detectors, in their order.

    Args:
        prototypes: What copies are made of.
        isolate: Told of a detector that failed and is left out from then on; None lets the error pass.
    """

    def __init__(self, prototypes: Sequence[Detector], isolate: Callable[[GuardError], None] | None = None) -> None:
        self._isolation = Isolation(isolate, self._leave_out)
        self._prototypes = list(prototypes)
        self._asked = copy.deepcopy(self._prototypes)
        self._own: tuple[list[Detector], dict[str, list[Detector]]] = ([], {})

    def __iter__(self) -> Iterator[Detector]:
        """Go through the detectors that are asked."""
        return iter(self._asked)

    def forget(self) -> None:
        """Begin anew with copies that have learned nothing."""
        self._asked = copy.deepcopy(self._prototypes)

    def _leave_out(self, detector: Detector) -> None:
        self._asked = [d for d in self._asked if d is not detector]
        self._prototypes = [d for d in self._prototypes if d.name != detector.name]

    def judge(self, statistics: GradientStatistics, known: Baseline) -> list[Verdict]:
        """Ask every detector until one raises an alarm; the alarm, if any, comes last."""
        verdicts = []
        # One that fails is left out of a new list.
        for detector in self._asked:
            # Not a with block: seven are asked at every step, and a try costs nothing until it fails.
            try:
                verdict = detector.judge(statistics, known)
                if verdict is None:
                    continue
                expected(verdict, Verdict)
            except Exception as error:
                self._isolation.failed(detector, "detector", error)
                continue
            verdicts.append(verdict)
            if verdict.alarm and not verdict.examine:
                break
        return verdicts

    def limit(self, known: Baseline) -> float:
        """Return the largest global norm that may pass."""
        limits = [math.inf]
        for detector in self._with_own("limit"):
            with self._isolation.block(detector, "detector"):
                limit = expected(detector.limit(known), (int, float))
                # A comparison with NaN is never true, and would let everything pass.
                limits.append(limit if limit == limit else 0.0)
        return min(limits)

    def accept(self, statistics: GradientStatistics, known: Baseline) -> None:
        """Tell the detectors that learn of a step that was let through."""
        for detector in self._with_own("accept"):
            try:
                detector.accept(statistics, known)
            except Exception as error:
                self._isolation.failed(detector, "detector", error)

    def reject(self, statistics: GradientStatistics) -> None:
        """Tell the detectors of a step that was skipped."""
        for detector in list(self._asked):
            with self._isolation.block(detector, "detector"):
                detector.reject(statistics)

    def _with_own(self, method: str) -> list[Detector]:
        """Return the detectors that have such a method of their own; found once, until detectors are changed."""
        if self._own[0] is not self._asked:
            self._own = self._asked, {}
        found = self._own[1].get(method)
        if found is None:
            found = self._own[1][method] = [d for d in self._asked if overrides(d, Detector, method)]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each detector, by name."""
        states = {}
        for detector in list(self._asked):
            with self._isolation.block(detector, "detector"):
                states[detector.name] = expected(detector.state_dict(), dict)
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; detectors that are new since then start afresh."""
        for detector in list(self._asked):
            if detector.name in states:
                with self._isolation.block(detector, "detector"):
                    detector.load_state_dict(states[detector.name])
