"""The bad start: what can be said of a first step, when there is no history to compare it with."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict

AFTER = 4
"""Accepted steps after which the first one is looked at again."""
MEMORABLE = 1000.0
"""Times the norms that follow: Adam's second moment forgets e-fold in a thousand steps, so the run all but stops."""
LARGEST = math.sqrt(3.4028e38)
"""Norm whose square nearly overflows float32: Adam's second moment would be inf, and weights never move again."""


class BadStart(Detector):
    """Find a start that cannot go well.

    Its gradients are not finite, or too large for an optimizer to hold, or the signal explodes on its way.

    Large weights or large gradients alone are no evidence: those of a trained model may be so. Where a weight is more
    than four times what its fan calls for, the layers are measured in the first batch. A signal that grows more than
    ``max_growth`` times from input to output is then an alarm at the second step; the first update is made as written.

    Adam's kind take a first step of the usual size however corrupt the batch, and then remember its gradient for
    thousands of steps; so their first norm is compared with the few that follow.

    Args:
        max_growth: Largest growth of the signal's RMS from input to output, of a network that is fresh from its
            initialisation.
    """

    name: ClassVar[str] = "cold-start"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, max_growth: float = 100.0) -> None:
        self.max_growth = checks.number("max_growth", max_growth, above=1.0)

    def limit(self, baseline: Baseline) -> float:
        """Return the largest norm that a first step may have; inf once there is a history."""
        return LARGEST if math.isnan(baseline.norms.center) else math.inf

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge until a first step has been accepted, and that one once more when a few have followed."""
        growth = statistics.growth
        if growth is not None and not growth <= self.max_growth and baseline.count <= AFTER:
            if baseline.count:
                reason = f"the signal grows {growth:.3g} x from input to output, in a network that is fresh"
                return self._verdict(statistics, self.max_growth, reason, growth)
            return None
        if baseline.count == AFTER and (told := self._look_back(statistics, baseline)) is not None:
            return told
        if not math.isnan(baseline.norms.center):
            return None
        # Steps without any gradient are no history.
        if not statistics.finite:
            if statistics.scaled or baseline.count:
                return None
            return self._verdict(statistics, math.inf, "the very first gradients are not finite", statistics.norm)
        if statistics.norm > LARGEST:
            reason = f"the first gradients have a norm of {statistics.norm:.3g}, whose square no optimizer can hold"
            return self._verdict(statistics, LARGEST, reason, statistics.norm)
        return None

    def _look_back(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        if not statistics.normalised or len(baseline.norms.log_norms) != AFTER:
            return None
        first, *others = baseline.norms.log_norms
        limit = MEMORABLE * max(statistics.norm, *map(math.exp, others))
        if not 0.0 < limit < math.exp(first):
            return None
        reason = f"the first gradient norm was {math.exp(first):.3g}, those after it {limit / MEMORABLE:.3g} at most"
        return self._verdict(statistics, limit, reason, math.exp(first))

    def _verdict(self, statistics: GradientStatistics, limit: float, reason: str, value: float) -> Verdict:
        layers = tuple(name for name, _ in statistics.nonfinite)
        return Verdict(form="cold-start", detector=self.name, value=value, limit=limit, reason=reason, layers=layers)
