"""Clipping of every step, for as long as it helps: where the direction is good and only the length is wrong."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.backoff import largest_rate
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.statistics.norms import gradient_norms
from lightning_gradguard.statistics.update_ratio import build_up

SHARE = 0.01
"""Update-to-weight ratio, of all weights together, that the longest gradient makes: healthy training shows 1e-4 to 1e-1."""
IDLE = 100
"""Updates in a row that need not be clipped after which none is any more."""


class LimitNorm(Remedy):
    """Clip the global norm of every gradient to one bound, on trial, and for as long as there is something to clip.

    The bound is the norm with which plain gradient descent at the present rate, its momentum filled, changes the weights by a hundredth:
    it knows the scale of weights and rate, and asks nothing of gradients that may all be too long. What the gradients' lengths had told
    is lost, which is why lower rates are tried first.
    """

    name: ClassVar[str] = "limit_norm"
    acts: ClassVar[frozenset[str]] = frozenset({Act.LIMIT})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._bound = math.inf
        self._idle = 0

    def apply(self, context: RemedyContext) -> Outcome:
        """Choose the bound from the weights and the rate at hand."""
        rate = largest_rate(context.optimizer)
        matrices = [p.detach() for p in context.parameters.values() if p.dim() > 1 and p.is_floating_point()]
        sharded = any(hasattr(p, "to_local") for p in matrices)
        size = (
            float(torch.linalg.vector_norm(torch.tensor(gradient_norms(matrices, sharded=sharded))))
            if matrices
            else 0.0
        )
        bound = SHARE * size / (rate * build_up(context.optimizer)) if rate > 0.0 else 0.0
        if not 0.0 < bound < math.inf:
            return Outcome(self.name, False, f"weights of norm {size:.3g} and a rate of {rate:.3g} give no bound")
        self._bound, self._idle = bound, 0
        return Outcome(self.name, True, f"every gradient is clipped to a norm of {bound:.3g}")

    def before_update(self, context: RemedyContext) -> None:
        """Clip, without waiting for a device."""
        if self._bound == math.inf:
            return
        norm = context.statistics.norm
        self._idle = self._idle + 1 if norm <= self._bound else 0
        if self._idle >= IDLE:
            self.take_back()
            return
        torch.nn.utils.clip_grad_norm_(context.parameters.values(), self._bound * context.grad_scale)

    def take_back(self) -> None:
        """Clip no more."""
        self._bound, self._idle = math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the bound, and for how many updates it was not reached."""
        return {"bound": self._bound, "idle": self._idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._bound, self._idle = float(state["bound"]), int(state["idle"])
