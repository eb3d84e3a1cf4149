"""A cure that did not take: the run has not blown up again, but it learns nothing either."""

from __future__ import annotations

from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict


class Stagnation(Detector):
    """Find a run that was treated before it had learned anything, and has learned nothing since.

    A rate that is far too high need not explode twice: it can leave dead units behind, or hover. Only runs that were
    treated are judged; a healthy run may sit on a plateau for as long as it likes.

    Args:
        patience: Accepted steps after the treatment in which the loss must fall below 0.9 times the untrained loss.
    """

    name: ClassVar[str] = "stagnation"

    def __init__(self, *, patience: int = 60) -> None:
        self.patience = checks.whole("patience", patience, least=RECENT)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        setback = baseline.setback
        if setback is None or baseline.count - setback < self.patience or baseline.learned:
            return None
        level, untrained = baseline.loss_level(RECENT)[0], baseline.untrained_loss
        reason = f"loss {level:.3g}: nothing was learned in {baseline.count - setback} steps since the treatment"
        return Verdict("divergence", self.name, level, 0.9 * untrained, reason)
