"""Non-finite gradients, told apart from the overflow that a GradScaler expects."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict


class NonFinite(Detector):
    """Find NaN and inf in gradients and loss.

    Under a GradScaler an overflow is routine: the scaler halves its scale and skips the step itself. Only a scale that
    keeps falling is trouble: ``patience`` overflows in a row (16 take the usual 65536 down to 1).

    Args:
        patience: Overflows in a row that a GradScaler is allowed.
    """

    name: ClassVar[str] = "non-finite"
    sees_nonfinite: ClassVar[bool] = True
    deferrable: ClassVar[bool] = True

    def __init__(self, *, patience: int = 16) -> None:
        self.patience = checks.whole("patience", patience, least=1)
        self._overflows = 0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the global norm; a NaN or inf loss alone is reported as well."""
        if statistics.finite:
            return self._judge_loss(statistics, baseline)
        if statistics.scaled and self._overflows < self.patience:
            return None
        layers = tuple(name for name, _ in statistics.nonfinite)
        elements = sum(count for _, count in statistics.nonfinite)
        # Only the norms are left of a step that was judged on its device.
        where = f"{elements} elements of " if elements else ""
        where += f"{len(layers)} of {len(statistics.names)} gradients"
        return Verdict(
            form="overflow" if statistics.scaled else "non-finite",
            detector=self.name,
            value=statistics.norm,
            limit=self.limit(baseline),
            layers=layers,
            reason=f"NaN or inf in {where}" if layers else "the gradients' norm is not finite",
        )

    def _judge_loss(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        if statistics.loss is None or math.isfinite(statistics.loss):
            return None
        reason = f"the loss is {statistics.loss}, though every gradient is finite"
        return Verdict("non-finite", self.name, statistics.norm, self.limit(baseline), reason, alarm=False)

    def reject(self, statistics: GradientStatistics) -> None:
        """Count the overflows in a row that were left to the GradScaler."""
        self._overflows += statistics.scaled and not statistics.finite

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Forget the overflows before a finite step."""
        self._overflows = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the count of overflows in a row."""
        return {"overflows": self._overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the count."""
        self._overflows = int(state["overflows"])
