"""The optimizer's own state, overwritten: seen before an update is made from it."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict


class OptimizerStateCorruption(Detector):
    """Find momentum or second moments that are not what the optimizer has made of the gradients.

    The gradients of that step are healthy ones, so nothing else can tell before the weights are gone. The state is
    looked at only where somebody else has written to it, and that alone is innocent: users reset a momentum, or scale
    one with the rate.
    """

    name: ClassVar[str] = "spoilt-state"
    deferrable: ClassVar[bool] = True

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge where the state was looked at."""
        if statistics.spoilt is None:
            return None
        reason = f"the optimizer's state was overwritten: {statistics.spoilt}"
        return Verdict("state", self.name, math.inf, math.inf, reason)
