"""A cure that did not take: the run has not blown up again, but it learns nothing either."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict


class Stagnation(Detector):
    """Find a treated run that sits at its untrained loss.

    A rate that is far too high need not explode twice: it can leave dead units behind, or hover. Only runs that were
    treated are judged; a healthy run may sit on a plateau for as long as it likes.

    Args:
        patience: Accepted steps in a row without learning, at least as many after the treatment.
    """

    name: ClassVar[str] = "stagnation"

    def __init__(self, *, patience: int = 60) -> None:
        self.patience = checks.whole("patience", patience, least=RECENT)
        self._idle = 0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        setback = baseline.setback
        if setback is None or self._idle < self.patience or baseline.count - setback < self.patience:
            return None
        level, untrained = baseline.loss_level(RECENT)[0], baseline.untrained_loss
        reason = f"loss {level:.3g} after the treatment: nothing was learned for {self._idle} steps"
        return Verdict("divergence", self.name, level, 0.9 * untrained, reason)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Count the steps in a row in which the loss is not below what it was before training."""
        self._idle = 0 if baseline.learned else self._idle + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"idle": self._idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._idle = int(state["idle"])
