"""A loss that leapt: a reason to look at the batch and the layers, and none to act unless something is found."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import RECENT, THIN_HISTORY
from lightning_gradguard.records import GradientStatistics, Verdict

FAR = 100.0
"""Times the largest loss so far at which a young run's batch is looked at: its spread is not known yet."""
SEEN = 3
"""Losses that must have been seen before."""
BEFORE = 32
"""Losses, before the last few, that tell where the run stood of late."""


class LossSpike(Detector):
    """Find a loss above those before by more than the larger of their level and six robust standard deviations.

    Layers that saturate, and normalisations, hide from the gradient what a corrupt batch or a damaged weight does to
    the outputs. A loss leaps for innocent reasons too (a hard batch, a change of the data), so only what is found
    counts: a batch far larger than any healthy one, or a layer that no training can have moved so far. A single leap
    asks for an examination at intervals only; where the median of the last nine losses has leapt as well, it lasts.
    """

    name: ClassVar[str] = "loss-leap"
    deferrable: ClassVar[bool] = True

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        loss = statistics.loss
        if loss is None:
            return None
        if baseline.count < THIN_HISTORY:
            largest = max(baseline.losses.latest(THIN_HISTORY), default=0.0)
            if baseline.count >= SEEN and loss > FAR * largest > 0.0:
                reason = f"loss {loss:.3g}, far above the largest so far ({largest:.3g})"
                return Verdict("sudden", self.name, loss, FAR * largest, reason, examine=True)
        if baseline.count < 2 * RECENT:
            return None
        level, spread = baseline.losses.level(BEFORE, skip=RECENT)
        limit = level + max(abs(level), 6.0 * spread)
        if loss <= limit or math.isnan(limit):
            return None
        now, _ = baseline.losses.level(RECENT)
        stays = now > limit
        if not stays and baseline.count < THIN_HISTORY:
            return None
        value = now if stays else loss
        reason = f"loss {value:.3g}, far above its history ({level:.3g})"
        return Verdict("divergence" if stays else "sudden", self.name, value, limit, reason, examine=True)
