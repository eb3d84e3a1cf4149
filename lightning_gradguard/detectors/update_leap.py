"""An update that would overrun the weights: a rate too high, seen at the first step that shows it."""

from __future__ import annotations

from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import OUTSIZED, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict


class UpdateLeap(Detector):
    """Find an update several times larger than usual that would be a good part of some weights, in a run worse than untrained.

    Under a rate that is too high, or that rises, norms grow by less than any limit for a spike, in a young run above all, and
    the update that destroys the run is one of them. The size of an update is told before it is made only for optimizers whose
    updates are proportional to the gradient (SGD). Each of the three signs alone is innocent: noisy runs, and those whose rate is
    warmed up, make updates eight times the usual ones, but small against the weights.

    Args:
        factor: Times the usual size of an update, by gradient norm and rate.
        max_update_ratio: Largest ``||update|| / ||weight||`` of such a step; healthy training shows 1e-4 to 1e-1.
    """

    name: ClassVar[str] = "update-leap"
    late: ClassVar[bool] = True

    def __init__(self, *, factor: float = OUTSIZED, max_update_ratio: float = 0.2) -> None:
        self.factor = checks.number("factor", factor, least=OUTSIZED)
        self.max_update_ratio = checks.number("max_update_ratio", max_update_ratio, above=0.0)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge where the update was measured before it is made."""
        ratio, rate = statistics.update_ratio, statistics.rate
        if ratio is None or rate is None or statistics.normalised or ratio <= self.max_update_ratio:
            return None
        limit = baseline.usual_norm(rate, self.factor)
        if not (statistics.finite and statistics.norm > limit and baseline.worse_than_untrained(statistics.loss)):
            return None
        reason = (
            f"an update of {ratio:.2g} x the weights, {self.factor * statistics.norm / limit:.3g} x the usual one, "
            f"and a loss of {statistics.loss:.3g} after {baseline.untrained_loss:.3g} before training"
        )
        return Verdict("sudden", self.name, statistics.norm, limit, reason, grave=True)
