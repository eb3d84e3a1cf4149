"""The loss as a second witness: a run that has become worse than it was before training."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import BEFORE, RECENT, YOUNG, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict

CAP = math.log(28.0)
"""Logarithm of the largest ratio that counts: less than the threshold, so that one absurd loss is no divergence."""
LOUD = 4.0
"""Times the lower quartile of the norms: a loss that climbs without its gradients is no explosion."""


class Divergence(Detector):
    """Find a loss that is far above what it was before training.

    A one-sided CUSUM (Page, 1954) of ``log(loss / reference)`` with a slack of ``log(factor)``.
    The reference is the untrained loss, or the recent level if that is higher: where targets move (bootstrapped
    values, a growing penalty) an honest loss climbs above its beginning, but it climbs slowly. A run that learns nothing hovers
    around its untrained loss, and a hard batch exceeds it now and then; a run that keeps exceeding it by more than
    ``factor`` is being destroyed. Losses that are not positive have no logarithm, and are not judged so.

    Args:
        factor: How many times the reference is tolerated for ever.
        threshold: Cumulated evidence (natural logarithm) that is called divergence.
    """

    name: ClassVar[str] = "divergence"
    late: ClassVar[bool] = True

    def __init__(self, *, factor: float = 4.0, threshold: float = 2.0) -> None:
        self.factor = checks.number("factor", factor, above=1.0)
        self.threshold = checks.number("threshold", threshold, above=0.0)
        self._sum = 0.0

    def _next_sum(self, statistics: GradientStatistics, baseline: Baseline) -> float:
        loss = statistics.loss
        if self._sum == 0.0 and loss is not None and loss <= baseline.untrained_loss:
            return 0.0  # No reference is below that, so there is nothing to add to nothing.
        reference = self._reference(baseline)
        if loss is None or not reference > 0 or not loss > 0 or statistics.still:
            return self._sum
        evidence = min(math.log(loss / reference), CAP) - math.log(self.factor)
        # A ceiling, so that a run which has recovered is believed within a few steps.
        return min(max(0.0, self._sum + evidence), 2.0 * self.threshold)

    def _reference(self, baseline: Baseline) -> float:
        if baseline.count < YOUNG:
            return baseline.untrained_loss
        # max() would keep a NaN that comes first, and only then.
        return max(baseline.untrained_loss, baseline.loss_level(BEFORE, skip=RECENT)[0])

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        loss = statistics.loss
        if loss is None or not baseline.first_losses or loss <= self.factor * baseline.untrained_loss:
            return None  # No reference is below the untrained loss, and of late need not be asked.
        limit = self.factor * self._reference(baseline)
        loud = statistics.norm > LOUD * math.exp(baseline.quantile(0.25))
        if loud and loss > limit and self._next_sum(statistics, baseline) > self.threshold:
            reason = f"loss {loss:.3g}, far worse than before training ({baseline.untrained_loss:.3g}) and than of late"
            return Verdict("divergence", self.name, loss, limit, reason)
        return None

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Add the step's evidence."""
        self._sum = self._next_sum(statistics, baseline)

    def state_dict(self) -> dict[str, Any]:
        """Return the cumulated evidence."""
        return {"sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._sum = float(state["sum"])
