"""Vanishing gradients: reported, nothing done."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import RECENT
from lightning_gradguard.records import GradientStatistics, Verdict


class Vanishing(Detector):
    """Report gradients that have all but disappeared while the loss has not.

    A norm also falls because the task is solved, so a loss that has fallen with it is an excuse.

    Args:
        factor: How many times below the largest norm the run has seen.
    """

    name: ClassVar[str] = "vanishing"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, factor: float = 1e6) -> None:
        self.factor = checks.number("factor", factor, above=1.0)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Compare the last steps with the high-water mark."""
        if baseline.count < 2 * RECENT:
            return None
        limit = math.exp(baseline.norms.high_water) / self.factor
        if statistics.norm > limit or not statistics.finite or math.exp(baseline.norms.recent) > 10 * limit:
            return None
        now, _ = baseline.losses.level(RECENT)
        if now < 0.5 * baseline.losses.untrained:
            return None
        fallen = "no loss is known" if math.isnan(now) else "the loss has not fallen"
        reason = f"norm {statistics.norm:.3g} is {self.factor:.0e} x below the largest seen, and {fallen}"
        return Verdict("vanishing", self.name, statistics.norm, limit, reason, alarm=False)
