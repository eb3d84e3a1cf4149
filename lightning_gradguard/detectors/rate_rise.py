"""A learning rate that rises beyond what the run can bear: a ramp that nobody ended, seen by the loss that it takes along."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict

GOOD = 1.5
"""Times the best level of the loss below which a run is as well as it ever was."""


class RateRise(Detector):
    """Find a rate that is larger than ever, and by ``factor`` larger than any the run was well with, while the loss is lost.

    Each of the two signs is innocent alone. A warm-up or a one-cycle schedule raises the rate by orders of magnitude, and the run keeps up
    or hovers; new data raise the loss, whatever the rate does. A spike's limit sees nothing of it, since norms grow with the
    loss, a few percent a step. Of 340 healthy runs one showed both; its loss was negative at its best, and is not judged since.

    Args:
        factor: Times the largest rate that went with a good loss.
    """

    name: ClassVar[str] = "rate-rise"
    late: ClassVar[bool] = True

    def __init__(self, *, factor: float = 1.5) -> None:
        self.factor = checks.number("factor", factor, above=1.0)
        self._good = 0.0
        self._largest = 0.0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by rate and loss; silent where either is unknown."""
        rate, limit = statistics.rate, self.factor * self._good
        if rate is None or not 0.0 < limit < rate or rate < self._largest or not baseline.lost:
            return None
        if baseline.setback is not None:
            return None  # The run was sent back at a lower rate, and what rises now is the guard's own recovery.
        level, _ = baseline.loss_level(RECENT)
        reason = (
            f"loss {level:.3g} after {baseline.best_loss:.3g} had been reached, "
            f"and a learning rate {rate / self._good:.3g} x the largest that it went with"
        )
        return Verdict("divergence", self.name, rate, limit, reason)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Note the rate, and whether the run was well with it."""
        if statistics.rate is None:
            return
        # A leap that was held made its update with less.
        rate = min(statistics.rate, baseline.rate)
        self._largest = max(self._largest, rate)
        if not rate > self._good:
            return
        if baseline.count < 2 * RECENT or baseline.loss_level(RECENT)[0] <= GOOD * baseline.best_loss:
            self._good = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the rates."""
        return {"good": self._good, "largest": self._largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._good, self._largest = float(state["good"]), float(state["largest"])
