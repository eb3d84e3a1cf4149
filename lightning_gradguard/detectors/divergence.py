"""The loss as a second witness: a run that has become worse than it was before training."""

from __future__ import annotations

import math
from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict


class Divergence(Detector):
    """Find a loss that leapt and stays.

    Speaks when the median of the last nine losses lies above the history by more than the larger of ``factor`` times
    its level and six robust standard deviations. It is an alarm if the run is then worse than it was untrained
    (its first losses), with gradients above typical; otherwise the layers are examined and nothing is changed unless
    one of them is found damaged, since a change of the data looks just so.

    Args:
        factor: How many times its level the loss must have risen.
    """

    name: ClassVar[str] = "divergence"

    def __init__(self, *, factor: float = 2.0) -> None:
        self.factor = checks.number("factor", factor, above=1.0)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the last losses; silent where no loss is known."""
        loss = statistics.loss
        if loss is None or not baseline.first_losses:
            return None
        first = baseline.untrained_loss
        level, spread = baseline.loss_level()
        now, _ = baseline.loss_level(RECENT)
        limit = level + max((self.factor - 1.0) * abs(level), 6.0 * spread)
        start = first + max((self.factor - 1.0) * abs(first), 6.0 * spread)
        if baseline.count >= 2 * RECENT:
            worse, value = now > start and loss > start, now
        else:
            # Few steps: one loss far beyond the first is all there is to see.
            worse, value = loss > first + 9.0 * abs(first) and statistics.norm > 3.0 * baseline.typical, loss
        leapt = baseline.count >= 2 * RECENT and now > limit and loss > limit
        if not (worse or leapt) or math.isnan(level):
            return None
        return Verdict(
            form="divergence",
            detector=self.name,
            value=value,
            limit=start if worse else limit,
            reason=f"loss {value:.3g}, {'worse than before training' if worse else 'far above its history'} ({first if worse else level:.3g})",
            examine=not worse,
        )
