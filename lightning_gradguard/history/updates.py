"""The updates of accepted steps: how large they were against the weights, and the rates that they were made with."""

from __future__ import annotations

import math
from typing import Any

LARGE = 0.1
"""Update-to-weight ratio from which an update replaces weights; 1e-4 to 1e-1 is healthy."""
WHOLE = 1.0
"""Update-to-weight ratio from which an update replaces all of the weights: only the first loss is of untrained ones."""
RISE = 3.0
"""Times a known rate above which one is another: its update is measured before it is made."""
RATE_MEMORY = 64
"""Time constant, in accepted steps, of the usual rate: norms are remembered twice as long."""


class UpdateHistory:
    """Remember the size of updates that were measured, and learning rates.

    Attributes:
        ratio: Largest ``||update|| / ||weight||`` of the updates that were measured, momentum filled.
        first_ratio: The first of them at the present rate, which is of weights that no large update has changed yet.
        convicted: Whether a rate has been convicted in this run, so that a loss that is lost speaks against the next
            one.
        looked: Rate at which an update was last measured.
        per_norm: The last one that was measured, over its rate, and over its norm where updates grow with it.
        rate: Largest learning rate of an accepted step.
        usual_rate: Geometric mean of the learning rates of late, newer ones counting more; 0 if unknown.
    """

    def __init__(self) -> None:
        self.ratio = self.first_ratio = self.looked = 0.0
        self.convicted = False
        self.rate = self.usual_rate = 0.0
        self.per_norm: tuple[float, bool] | None = None

    def accept(self, ratio: float) -> None:
        """Learn the size of an update that was made and measured, against the weights."""
        self.first_ratio = self.first_ratio or ratio
        self.ratio = max(self.ratio, ratio)

    def measure(self, ratio: float, norm: float, rate: float, *, grows: bool) -> None:
        """Learn from a measured update what others are like; ``grows`` where a larger norm makes a larger one.

        One of 0 teaches nothing: there are no matrices, or a rate of 0.
        """
        if ratio > 0.0 and (per := rate * (norm if grows else 1.0)) > 0.0:
            self.per_norm = ratio / per, grows

    @property
    def measured(self) -> bool:
        """Whether it is known how large an update is."""
        return self.per_norm is not None

    def reach(self, ratio: float, rate: float | None) -> float:
        """Return the largest norm whose update stays within ``ratio``, by the last one measured; 0 if none was."""
        if self.per_norm is None or rate is None:
            return 0.0
        per, grows = self.per_norm
        if grows:
            return ratio / (per * rate) if per * rate > 0.0 else math.inf
        return math.inf if per * rate <= ratio else 0.0

    def forget_ratio(self) -> None:
        """Forget how large updates were, where they no longer speak against the rate."""
        self.ratio = 0.0

    def slow_down(self) -> None:
        """Note that a rate has lost the run, and forget the updates that were measured at it."""
        self.ratio = self.first_ratio = 0.0
        self.convicted = True

    def look(self, rate: float | None) -> None:
        """Note the rate of a step whose update was measured."""
        self.looked = rate or 0.0

    def accept_rate(self, rate: float) -> None:
        """Learn the rate of an accepted step."""
        if rate > 0.0 and rate != self.usual_rate:
            usual = self.usual_rate or rate
            self.usual_rate = usual * (rate / usual) ** (1.0 / RATE_MEMORY)

    def allow(self, rate: float) -> None:
        """Learn that a step was accepted at a rate, which may be the largest so far."""
        self.rate = max(self.rate, rate)

    def rate_leapt(self, rate: float | None) -> bool:
        """Return whether a rate lies so far above that of the last look that its update should be measured."""
        return rate is not None and 0.0 < RISE * self.looked < rate

    def risen(self, rate: float | None) -> bool:
        """Return whether a rate lies so far above the usual one that nobody knows it to be good."""
        return rate is not None and 0.0 < RISE * self.usual_rate < rate

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {
            "update_ratio": self.ratio,
            "rate": self.rate,
            "usual_rate": self.usual_rate,
            "looked": self.looked,
            "first_ratio": self.first_ratio,
            "convicted": self.convicted,
            "per_norm": list(self.per_norm or ()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.ratio, self.first_ratio = float(state["update_ratio"]), float(state["first_ratio"])
        self.rate, self.usual_rate = float(state["rate"]), float(state["usual_rate"])
        self.looked, self.convicted = float(state["looked"]), bool(state["convicted"])
        per, *grows = state["per_norm"] or [0.0]
        self.per_norm = (float(per), bool(grows[0])) if grows else None
