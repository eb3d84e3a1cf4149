"""The cold start: a first gradient that is huge, when there is no history to compare it with."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict

AFTER = 4
"""Accepted steps after which the first one is looked at again."""
MEMORABLE = 1000.0
"""Times the norms that follow: Adam's second moment forgets e-fold in a thousand steps, so such a first batch all but stops the run."""
LARGEST = math.sqrt(3.4028e38)
"""Norm whose square is about to overflow float32: Adam's second moment would be inf, and its weights never move again."""

DEAFENING = 1e6
"""Gradient norm over weight norm at which a weight twice what its fan calls for (no usual initialisation is) is suspicious enough."""


class ColdStart(Detector):
    """Find a bad start by scale-free tests only.

    An update that is larger than the weight it is added to replaces the layer. Optimizers of Adam's kind take such
    a step again and again, whatever the gradient, so for them 1 is too much; with SGD the next gradient may be
    small, so there a ratio of ``max_update_ratio`` is. A weight that is far larger than its fan calls for is an alarm if the
    gradients are large as well, at a hundred times ``max_weight_excess`` in any case, and at 2 if the gradients are a
    million times the weights.

    Adam's kind take a first step of the usual size however corrupt the batch, and then remember its gradient for thousands of
    steps; so their first norm is compared with the few that follow.

    Args:
        max_update_ratio: Largest ``||update|| / ||weight||`` of a first step with SGD.
        max_weight_excess: Largest RMS of a weight over what its fan calls for.
    """

    name: ClassVar[str] = "cold-start"
    late: ClassVar[bool] = True

    def __init__(self, *, max_update_ratio: float = 10.0, max_weight_excess: float = 4.0) -> None:
        self.max_update_ratio = checks.number("max_update_ratio", max_update_ratio, above=0.0)
        self.max_weight_excess = checks.number("max_weight_excess", max_weight_excess, above=1.0)

    def limit(self, baseline: Baseline) -> float:
        """Return what a first step may have; later ones have a history."""
        return math.inf if baseline.count else LARGEST

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge until a first step has been accepted, and that one once more when a few have followed."""
        if baseline.count:
            return self._look_back(statistics, baseline) if baseline.count == AFTER else None
        if not statistics.finite:
            if statistics.scaled:
                return None
            return self._verdict(statistics, math.inf, "the very first gradients are not finite", statistics.norm)
        ratio = statistics.update_ratio or 0.0
        excess = statistics.weight_excess or 0.0
        most = 1.0 if statistics.normalised else self.max_update_ratio
        if ratio > most:
            reason = f"the first update would be {ratio:.3g} x the weights it is added to"
            return self._verdict(statistics, most, reason, ratio)
        if statistics.norm > LARGEST:
            reason = f"the first gradients have a norm of {statistics.norm:.3g}, whose square no optimizer can hold"
            return self._verdict(statistics, LARGEST, reason, statistics.norm)
        weight_norm = statistics.weight_norm or math.inf
        loud = ratio > 1.0 or statistics.norm > weight_norm
        allowed = self.max_weight_excess * (1.0 if loud else 100.0)
        if statistics.norm > DEAFENING * weight_norm:
            # What a recurrent layer exceeds its fan by counts once for every step of the sequence.
            allowed = min(allowed, 2.0)
        if excess > allowed:
            reason = f"gradient norm {statistics.norm:.3g}, and a weight {excess:.3g} x what its fan calls for"
            return self._verdict(statistics, allowed, reason, excess)
        return None

    def _look_back(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        if not statistics.normalised or len(baseline.log_norms) != AFTER:
            return None
        first, *others = baseline.log_norms
        limit = MEMORABLE * max(statistics.norm, *map(math.exp, others))
        if not 0.0 < limit < math.exp(first):
            return None
        reason = f"the first gradient norm was {math.exp(first):.3g}, those after it {limit / MEMORABLE:.3g} at most"
        return self._verdict(statistics, limit, reason, math.exp(first))

    def _verdict(self, statistics: GradientStatistics, limit: float, reason: str, value: float) -> Verdict:
        layers = tuple(name for name, _ in statistics.nonfinite)
        return Verdict(form="cold-start", detector=self.name, value=value, limit=limit, reason=reason, layers=layers)
