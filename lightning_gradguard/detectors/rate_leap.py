"""A learning rate that leaps in mid-run: a schedule gone wrong, seen before its first update."""

from __future__ import annotations

from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict


class RateLeap(Detector):
    """Find a rate far above any that the run has lived with, whose next update would be a good part of the weights.

    The gradients of that step are healthy ones, so nothing else can tell before the weights are gone. Each of the two signs
    alone is innocent: fine-tuning in stages raises the rate a hundredfold, from almost nothing to something small; and a
    warm-up or a restart comes to its large rate by steps, or has been there before.

    Args:
        factor: Times the largest rate of an accepted step that a rate may rise in one step.
        max_update_ratio: Largest ``||update|| / ||weight||`` after such a rise; healthy training shows 1e-4 to 1e-1.
    """

    name: ClassVar[str] = "rate-leap"
    late: ClassVar[bool] = True

    def __init__(self, *, factor: float = 10.0, max_update_ratio: float = 0.2) -> None:
        self.factor = checks.number("factor", factor, above=1.0)
        self.max_update_ratio = checks.number("max_update_ratio", max_update_ratio, above=0.0)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge where the rate and the update it would make are known."""
        rate, ratio = statistics.rate, statistics.update_ratio
        if rate is None or ratio is None or not 0.0 < baseline.rate * self.factor < rate:
            return None
        if not statistics.finite or ratio <= self.max_update_ratio:
            return None
        reason = f"learning rate {rate:.3g}, {rate / baseline.rate:.3g} x the largest so far: an update of {ratio:.2g} x the weights"
        return Verdict("rate", self.name, rate, baseline.rate, reason)
