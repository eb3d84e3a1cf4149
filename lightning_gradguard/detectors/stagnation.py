"""A run that sits at its untrained loss: it was treated and the cure did not take, or it had learned and has lost all."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import INSANE, LOST, NORM_WINDOW, RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict

STEADY = 0.1
"""Spread over level of a loss that is stuck; one that moves more (targets that grow, say) is alive."""


class Stagnation(Detector):
    """Find a run that was rolled back and learns nothing, and a collapsed one.

    A rate that is far too high need not explode twice: it can leave dead units behind, or hover. A run that was never
    treated and has not learned yet may sit on its plateau for as long as it likes, unless its first updates were
    insane. What has collapsed sits steadily at its untrained loss. A change of the data can raise the loss as far, but
    a run that lives learns the new data within some dozen steps.

    Args:
        patience: Accepted steps in a row without learning, at least as many after a treatment.
    """

    name: ClassVar[str] = "stagnation"
    late: ClassVar[bool] = True

    def __init__(self, *, patience: int = 40) -> None:
        self.patience = checks.whole("patience", patience, least=RECENT)
        self._idle = 0
        self._collapsed = 0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        treated = baseline.setback is not None
        if not self._idle and not self._collapsed and not treated:
            return None
        level, untrained = baseline.loss_level(RECENT)[0], baseline.untrained_loss
        settled = not treated or baseline.count - (baseline.setback or 0) >= self.patience
        if self._collapsed >= RECENT and settled:
            told = f"loss {level:.3g} after {baseline.best_loss:.3g} had been reached, and gradients have faded"
            return Verdict("divergence", self.name, level, LOST * baseline.best_loss, told)
        reason = self._after_treatment(baseline, level) if treated else self._untreated(baseline, level)
        return Verdict("divergence", self.name, level, 0.9 * untrained, reason) if reason else None

    def _after_treatment(self, baseline: Baseline, level: float) -> str | None:
        patience, since = self.patience * (1 + baseline.setbacks), baseline.count - (baseline.setback or 0)
        untrained, best = baseline.untrained_loss, baseline.best_loss
        had_learned = best < 0.5 * untrained
        if had_learned and self._idle > 0 and since < patience:
            return (
                f"loss {level:.3g}, as before training, {since} steps after going back"
                if self._steady(baseline)
                else None
            )
        if since < patience:
            return None
        if self._idle >= patience and self._steady(baseline):
            return f"loss {level:.3g}: nothing was learned for {self._idle} steps since going back"
        before, _ = baseline.loss_level(self.patience, skip=RECENT)
        if had_learned and min(level, before) > max(LOST * best, 0.25 * untrained):
            return f"loss {level:.3g}, far from the {best:.3g} that had been reached, {since} steps after going back"
        return None

    def _untreated(self, baseline: Baseline, level: float) -> str | None:
        untrained, best = baseline.untrained_loss, baseline.best_loss
        if self._idle < self.patience or not self._steady(baseline):
            return None
        if best < 0.5 * untrained and level <= 1.25 * untrained:
            return f"loss {level:.3g}, as before training, for {self._idle} steps, after {best:.3g} had been reached"
        if best >= 0.5 * untrained and baseline.update_ratio > INSANE and self._idle >= 2 * self.patience:
            ratio = baseline.update_ratio
            return f"loss {level:.3g}: nothing was ever learned, and first updates were {ratio:.2g} of the weights"
        return None

    def _steady(self, baseline: Baseline) -> bool:
        """Tell whether the loss stands still: it hardly moves, and what it moves is no slow descent.

        A rate that was lowered a hundredfold may learn so slowly that the loss stays near its beginning for long; to lower it
        again would end what has begun. The medians of two halves differ by chance by 1.77 sigma / sqrt(n).
        """
        level, spread = baseline.loss_level(self.patience)
        half = min(baseline.count - (baseline.setback or 0), NORM_WINDOW) // 2
        (now, noise), (before, _) = baseline.loss_level(half), baseline.loss_level(half, skip=half)
        return spread <= STEADY * level and not before - now > 2.0 * 1.77 * noise / half**0.5

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Count the steps in a row in which the loss is not below what it was before training."""
        self._idle = 0 if baseline.learned else self._idle + 1
        self._collapsed = self._collapsed + 1 if baseline.collapsed else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"idle": self._idle, "collapsed": self._collapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._idle, self._collapsed = int(state["idle"]), int(state["collapsed"])
