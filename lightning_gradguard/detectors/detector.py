"""The contract of a detector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict


class Detector(ABC):
    """Judge the gradients of one optimizer, step by step."""

    name: ClassVar[str]
    """What verdicts call it."""
    deferrable: ClassVar[bool] = False
    """Whether :meth:`limit` says all that cannot wait: on a GPU a step of a calm run is judged when the next one is
    made, so that nobody waits for the device. False costs one wait a step, and misses nothing."""

    sees_nonfinite: ClassVar[bool] = False
    """Whether it raises an alarm at gradients that are not finite, so that a device may keep them from the weights."""

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    @abstractmethod
    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Return a verdict, or None if nothing is wrong; read, never learn."""

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Learn from a step that was let through."""

    def reject(self, statistics: GradientStatistics) -> None:
        """Note that a step was not let through; its values must teach nothing."""

    def limit(self, baseline: Baseline) -> float:
        """Return the largest global norm that may pass; it is known before the step."""
        return math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned: numbers, strings, lists and dicts of these only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
