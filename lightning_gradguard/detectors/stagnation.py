"""A run that sits at its untrained loss: it was treated and the cure did not take, or it had learned and has lost all."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.baseline import RECENT, Baseline
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.records import GradientStatistics, Verdict

INSANE = 0.2
"""Update-to-weight ratio of the first steps from which a long plateau is the rate's fault; 1e-4 to 1e-1 is healthy."""
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

    def __init__(self, *, patience: int = 40) -> None:
        self.patience = checks.whole("patience", patience, least=RECENT)
        self._idle = 0
        self._best = math.inf

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known."""
        level, untrained = baseline.loss_level(RECENT)[0], baseline.untrained_loss
        setback, had_learned = baseline.setback, self._best < 0.5 * untrained
        patience = self.patience * (1 + baseline.setbacks)
        if not baseline.loss_level(self.patience)[1] <= STEADY * level:
            return None
        if setback is not None and had_learned and 0 < self._idle < patience > baseline.count - setback:
            reason = f"loss {level:.3g}, as before training, {baseline.count - setback} steps after the treatment"
        elif self._idle < patience:
            return None
        elif setback is not None and baseline.count - setback >= patience:
            reason = f"loss {level:.3g} after the treatment: nothing was learned for {self._idle} steps"
        elif had_learned and setback is None and level <= 1.25 * untrained:
            reason = (
                f"loss {level:.3g}, as before training, for {self._idle} steps, after {self._best:.3g} had been reached"
            )
        elif setback is None and not had_learned and baseline.update_ratio > INSANE and self._idle >= 2 * patience:
            reason = f"loss {level:.3g}: nothing was ever learned, and first updates were {baseline.update_ratio:.2g} of the weights"
        else:
            return None
        return Verdict("divergence", self.name, level, 0.9 * untrained, reason)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Count the steps in a row in which the loss is not below what it was before training."""
        self._idle = 0 if baseline.learned else self._idle + 1
        if self._idle == 0 and baseline.count >= RECENT:
            self._best = min(self._best, baseline.loss_level(RECENT)[0])

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the best level."""
        return {"idle": self._idle, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._idle, self._best = int(state["idle"]), float(state["best"])
