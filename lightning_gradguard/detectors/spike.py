"""The sudden form: a norm far above its history."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.bad_start import LARGEST
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE, WHOLE
from lightning_gradguard.records import GENTLE, GradientStatistics, Verdict

WIDEST = math.log(1000.0)
"""Widest margin that any history can earn; a batch of two, the noisiest that was seen to train, earns about 400."""

EARLY_GROWTH = 30.0
"""Times the limit that healthy growth at the start may reach: the norm leaps while the loss does not."""


def spike_limit(baseline: Baseline, factor: float, zscore: float) -> float:
    """Return the largest norm that history can explain; inf while there is none.

    ``log limit = max(reference + max(log factor, zscore * spread), high water)``. The reference is the larger of
    the long and the short median, so that healthy growth is followed. The high-water mark keeps a run whose norm
    has decayed a hundredfold from calling a hard sample an explosion. While there are few steps both terms are wider:
    a spread that was estimated from n values is itself uncertain, and training moves fastest at its beginning.
    """
    n = baseline.count
    typical = baseline.norms.typical
    if n == 0 and baseline.norms.prior > 0.0:
        # The run has gone back to where nothing was known. That it is new there must not make any batch its measure.
        return EARLY_GROWTH * baseline.norms.prior
    if n == 0 or math.isnan(typical):
        return math.inf
    young = 1.0 + 100.0 / n**2
    margin = max(math.log(factor * young), zscore * baseline.norms.spread * (1.0 + 8.0 / n))
    # Norms that jump about by orders of magnitude are a symptom, and must not excuse themselves.
    margin = min(margin, max(math.log(factor), WIDEST))
    # exp overflows above 709; norms of that size are non-finite in any dtype.
    return math.exp(min(max(math.log(typical) + margin, baseline.norms.high_water), 700.0))


class Spike(Detector):
    """Find a global norm far above its history.

    Robust z-score on the log norm (median and quantiles instead of mean and variance). On log-normal norms a limit of
    six robust sigma gave no false alarm in 60,000 steps at any spread; the factor keeps quiet runs, whose
    spread is tiny, from calling every ripple a spike.

    Args:
        factor: A norm below ``factor`` times the typical one is never a spike.
        zscore: A norm below this many robust standard deviations (of the log norm) is never a spike.
    """

    name: ClassVar[str] = "spike"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, factor: float = 8.0, zscore: float = 6.0) -> None:
        self.factor = checks.number("factor", factor, above=1.0)
        self.zscore = checks.number("zscore", zscore, above=0.0)

    def limit(self, baseline: Baseline) -> float:
        """Return the limit for the next step."""
        return spike_limit(baseline, self.factor, self.zscore)

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Compare the global norm with the limit; early on, with the widest that there is."""
        if baseline.count >= THIN_HISTORY and statistics.norm <= 0.5 * self.factor * baseline.norms.typical:
            # Half of the least that any history calls a spike, as in nearly every step: its own limit need not be
            # known.
            return None
        limit = ordinary = self.limit(baseline)
        if not statistics.finite:
            return None
        replaces = (statistics.update_ratio or 0.0) > WHOLE
        known = statistics.loss is not None and not replaces and not baseline.overrun(statistics.loss)
        if 0 < baseline.count < THIN_HISTORY and known:
            # Nothing is known of the tail yet, and the run's own losses tell soon enough whether an update was too
            # much.
            limit = max(limit, math.exp(WIDEST) * baseline.norms.typical)
        if statistics.norm <= limit:
            return None
        usual = baseline.norms.typical if baseline.count else baseline.norms.prior
        worst = sorted(zip(statistics.norms, statistics.names, strict=True), reverse=True)[:3]
        verdict = Verdict(
            form="sudden",
            detector=self.name,
            value=statistics.norm,
            limit=limit,
            layers=tuple(name for _, name in worst),
            reason=f"norm {statistics.norm:.3g} is {statistics.norm / usual:.3g} x the typical {usual:.3g}",
        )
        # Where its update is known to leave the weights nearly as they are, such a norm does no harm unless batch or
        # layers are at fault; in a run of a few steps, no norm does, and where updates go by signs, none ever does, nor
        # where no update grows with its gradient and no matrix is trained (a temperature).
        ratio, young = statistics.update_ratio or baseline.updates.ratio, baseline.count < RECENT
        known = young or (statistics.norm < GENTLE * ordinary and statistics.update_ratio is not None)
        bounded = statistics.by_sign or (statistics.normalised and statistics.update_ratio == 0.0)
        harmless = bounded or (known and 0.0 < ratio <= LARGE)
        return dataclasses.replace(verdict, examine=harmless and statistics.norm <= LARGEST)
