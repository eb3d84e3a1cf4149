"""The gradient norms of accepted steps: robust statistics of their logarithms."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradguard.history.level import QUICK
from lightning_gradguard.history.sample import ENOUGH, RECENT, Sample

MEMORY = 5000.0
"""Accepted steps in which the high-water mark sinks by e: what a run has survived, it survives again."""
FLOOR = 1e-38
"""Norm up to which a gradient counts as zero."""
FADED = 0.01
"""Share of what they were at which gradients have faded."""
GONE = FADED**2
"""Share of the largest norm at which they have all but disappeared: faded, and faded once more."""


class NormHistory:
    """Remember the norms of accepted steps, by medians and quantiles, which a few bad ones among them do not move.

    Attributes:
        silent: Accepted steps in a row whose gradients were zero.
        high_water: Log of the largest norm that the run survived, slowly forgotten.
        first: Largest norm among the first few accepted steps of the run.
        center: Median log norm over the window.
        prior: Norm that was usual before the run went back to where nothing was known; 0 if it never did.
    """

    def __init__(self) -> None:
        self.silent = 0
        self.high_water = -math.inf
        self._norms = Sample()
        # How far each norm lay above those just before it.
        self._surprises = Sample()
        # Both are asked for several times between two accepted steps.
        self.center = math.nan
        self._recent: float | None = None
        self.first = self.prior = 0.0

    def accept(self, norm: float, count: int) -> None:
        """Learn the norm of the accepted step of this number; a zero or non-finite one teaches nothing."""
        self.silent = self.silent + 1 if norm <= FLOOR else 0
        if math.isfinite(norm) and norm > FLOOR:
            self._push(math.log(norm))
            if count <= RECENT:
                self.first = max(self.first, norm)

    def _push(self, log_norm: float) -> None:
        if self._norms.values:
            self._surprises.push(log_norm - self.recent)
        self._norms.push(log_norm)
        self.center, self._recent = self._norms.quantile(0.5), None
        self.high_water = max(log_norm, self.high_water - 1.0 / MEMORY)

    @property
    def log_norms(self) -> tuple[float, ...]:
        """The remembered log norms, oldest first."""
        return tuple(self._norms.values)

    def quantile(self, q: float) -> float:
        """Return the ``q``-quantile of the remembered log norms; NaN while there are none."""
        return self._norms.quantile(q)

    @property
    def recent(self) -> float:
        """Median log norm over the last few accepted steps; NaN while there are none."""
        if self._recent is None:
            self._recent = self.earlier(0)
        return self._recent

    def earlier(self, skip: int) -> float:
        """Return the median log norm of a few steps, ``skip`` accepted steps ago; NaN where there are none."""
        end = max(len(self._norms.values) - skip, 0)
        few = sorted(self._norms.values[max(end - RECENT, 0) : end])
        return few[len(few) // 2] if few else math.nan

    @property
    def spread(self) -> float:
        """Robust standard deviation of the log norm about its recent level.

        That of the window counts a trend as noise (a norm that grew eightfold while the run left a plateau would excuse
        a spike of two orders of magnitude), so from a few surprises on the smaller of the two is taken.
        """
        wide = self._norms.spread
        return min(wide, self._surprises.spread) if len(self._surprises.values) >= ENOUGH else wide

    @property
    def typical(self) -> float:
        """The norm that a healthy step has now: the larger of the window's and the last steps' median; NaN at first."""
        return math.exp(max(self.center, self.recent)) if self._norms.values else math.nan

    def faded(self, *, since_first: bool) -> bool:
        """Return whether gradients are a hundredth of what they were, at first or of late: units have died."""
        before = math.log(self.first) if since_first and self.first > 0.0 else self.center
        return self.recent < before + math.log(FADED)

    @property
    def put_out(self) -> bool:
        """Whether they have disappeared within the last few steps already: after a first time that is enough."""
        return self.silent >= QUICK or self.gone

    @property
    def gone(self) -> bool:
        """Whether gradients have all but disappeared for a while."""
        return self.silent >= RECENT or self.recent < self.high_water + math.log(GONE)

    def forget_prior(self) -> None:
        """Forget the norm that was usual before: it was of other weights."""
        self.prior = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {
            "silent": self.silent,
            "high_water": self.high_water,
            "norms": list(self._norms.values),
            "surprises": list(self._surprises.values),
            "first_norm": self.first,
            "prior": self.prior,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.silent, self.high_water = int(state["silent"]), float(state["high_water"])
        self._norms, self._surprises = Sample(state["norms"]), Sample(state["surprises"])
        self.center, self._recent = self._norms.quantile(0.5), None
        self.first, self.prior = float(state["first_norm"]), float(state["prior"])
