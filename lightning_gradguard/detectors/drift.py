"""Drift: growth of the norm that is too slow for any single step to show."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import RECENT
from lightning_gradguard.records import GradientStatistics, Verdict

REFERENCE = 40
"""Accepted steps before a reference is frozen."""
EXAMINED = 3.0
"""Growth from which the layers are looked at while the loss rises."""
LEAPT = 3.0
"""Growth within nine or eighteen steps above which the norm has leapt; a drift of x1000 over 300 steps makes 1.5."""
GROWN = 2.0
"""Growth below which nothing is said: norms double and halve for many healthy reasons."""
PER_STEP = 3.0
"""Standard deviations that one step may add to the sum, however far above the reference it lies."""
LEAST_SPREAD = 0.1
"""Spread assumed at least, so that a quiet run's ripples do not add up."""
ENDLESS = 1000.0
"""Times what they were at first that the norm and, below zero, the loss of no bounded objective come to."""
BEYOND = ENDLESS**2
"""The same where nothing is left of what was learned, above zero too: endless, and endless once more."""


class Drift(Detector):
    """Find growth that is too slow for a spike, by a one-sided CUSUM of the log norm against a frozen reference.

    ``S = max(0, S + z - slack)`` with z in robust standard deviations (Page, 1954); the verdict comes at ``S >
    threshold``. Norms also grow while a healthy model learns. So if the loss has fallen since the reference was frozen,
    the growth is healthy and becomes the new reference. If it has not, the verdict reports; where the loss is worse
    beyond chance and the norm has grown threefold without a leap, it asks for the layers to be examined. Whether the
    run is lost is for the losses to tell. Growth of a thousand times while the loss falls as far below zero is reported
    too: it may have no lower bound. Where both have come to a million times what they were, the run is lost, whichever
    way the loss has gone, and whatever its updates were.

    Args:
        slack: Standard deviations of growth that are tolerated for ever (k).
        threshold: Cumulated excess, in standard deviations, that is called drift (h).
    """

    name: ClassVar[str] = "drift"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, slack: float = 0.5, threshold: float = 7.0) -> None:
        self.slack = checks.number("slack", slack, least=0.0)
        self.threshold = checks.number("threshold", threshold, above=0.0)
        self._reset()

    def _reset(self) -> None:
        self._sum = 0.0
        self._seen = 0
        self._center = math.nan
        self._spread = math.nan
        self._loss = math.nan

    def _next_sum(self, norm: float) -> float:
        if math.isnan(self._center) or not norm > 0:
            return self._sum
        z = (math.log(norm) - self._center) / self._spread
        # A single outlier is the spike detector's business.
        return max(0.0, self._sum + min(z, PER_STEP + self.slack) - self.slack)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Return a verdict while the cumulated excess is above the threshold and the loss does not excuse it."""
        if statistics.norm > ENDLESS * baseline.norms.first and (endless := _endless(statistics, baseline)) is not None:
            return endless
        if self._sum < self.threshold - 1.01 * PER_STEP:
            return None  # As in nearly every step: one more cannot carry it so far, whatever is lost in rounding.
        if not statistics.finite or self._next_sum(statistics.norm) <= self.threshold:
            return None
        grown = math.exp(baseline.norms.recent - self._center) if baseline.count else 1.0
        if grown < GROWN:
            return None
        rise = self._loss_rise(baseline)
        if rise is not None and rise < -0.02:
            return None
        # Drift is slow. A norm that leapt is a spike's or a change of the data's, and both are judged elsewhere.
        leapt = max(baseline.norms.recent - baseline.norms.earlier(lag) for lag in (RECENT, 2 * RECENT)) > math.log(
            LEAPT
        )
        # Worth a look at the layers: one of them may be drifting away.
        examine = not leapt and baseline.losses.worse and grown >= EXAMINED
        told = "" if rise is None else f" while the loss changed by {rise:+.0%}"
        return Verdict(
            form="drift",
            detector=self.name,
            value=statistics.norm,
            limit=math.exp(self._center) * GROWN,
            reason=f"the norm has grown {grown:.3g} x over {self._seen} steps{told}",
            alarm=examine,
            examine=examine,
        )

    def _loss_rise(self, baseline: Baseline) -> float | None:
        level, _ = baseline.losses.level(2 * RECENT)
        if math.isnan(level) or math.isnan(self._loss):
            return None
        return (level - self._loss) / max(abs(self._loss), 1e-12)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Add the step to the sum; freeze a new reference when there is none or the loss excuses the growth."""
        self._sum = self._next_sum(statistics.norm)
        self._seen += 1
        if math.isnan(self._center):
            fresh = baseline.count >= REFERENCE and self._seen >= REFERENCE
        else:
            rise = self._loss_rise(baseline) if self._sum > self.threshold else None
            healthy = rise is not None and rise < -0.02
            # A norm that decays leaves the old reference useless: nothing could be seen before it had grown back.
            decayed = self._seen % 100 == 0 and self._sum == 0.0
            fresh = healthy or decayed
        if fresh:
            self._freeze(baseline)

    def _freeze(self, baseline: Baseline) -> None:
        self._sum, self._seen = 0.0, 0
        self._center = max(baseline.norms.center, baseline.norms.recent)
        self._spread = max(baseline.norms.spread, LEAST_SPREAD)
        self._loss = baseline.losses.level(2 * RECENT)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and its frozen reference."""
        return {
            "sum": self._sum,
            "seen": self._seen,
            "center": self._center,
            "spread": self._spread,
            "loss": self._loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back sum and reference."""
        self._sum, self._seen = float(state["sum"]), int(state["seen"])
        self._center, self._spread = float(state["center"]), float(state["spread"])
        self._loss = float(state["loss"])


def _endless(statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
    """Return what is said of a loss that goes on and on with the norm: nothing excuses that."""
    first, untrained, loss = baseline.norms.first, abs(baseline.losses.untrained), statistics.loss or 0.0
    if not (first > 0.0 and untrained > 0.0):
        return None
    times = min(statistics.norm / first, abs(loss) / untrained)
    if not times > (ENDLESS if loss < 0.0 else BEYOND):
        return None
    told = f"the norm has grown {statistics.norm / first:.3g} x, and the loss {'falls' if loss < 0.0 else 'rises'} on"
    reason = f"{told} from {untrained:.3g} to {loss:.3g}{': has it a lower bound?' if loss < 0.0 else ''}"
    if times > BEYOND:
        return Verdict("divergence", Drift.name, loss, math.copysign(BEYOND * untrained, loss), reason)
    return Verdict("drift", Drift.name, statistics.norm, ENDLESS * first, reason, alarm=False)
