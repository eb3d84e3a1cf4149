"""Regularisation for a while: a decoupled pull towards the last good weights, which fades away."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lightning_gradguard import checks
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.statistics.norms import local


class Regularize(Remedy):
    """Pull the weights towards the last good snapshot before each update, for ``steps`` updates after an incident.

    Each weight w that is about to be updated first becomes ``w - s (w - w_good)``. The strength s falls linearly from
    ``pull`` to 0, so that the weights are free at the end. A steady update u then moves a weight by ``u / s`` at most:
    by ten updates at a pull of 0.1. Without a snapshot the matrices decay instead, ``w - s w`` with s from
    ``decay``, by which they lose four tenths over 100 steps; biases and gains are left alone.

    Like AdamW's decay the pull is decoupled (Loshchilov and Hutter, 2019): it is no part of the loss, so the gradient's
    statistics do not see it, and no adaptive optimizer divides it by anything. The penalty ``||w - w_good||²`` is
    L2-SP's (Li, Grandvalet and Davoine, 2018).

    Off by default; in a list of remedies it accompanies back-off, rollback and repair. While it acts, a snapshot is
    copied to the parameters' device once a step.

    Args:
        steps: Updates until the pull has faded.
        pull: Share of the way to the snapshot that the first update begins with.
        decay: Share by which matrices shrink at the first update where there is no snapshot.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.remedies import Regularize, Rollback, Skip
        >>> guard = GradGuard(remedies=[Skip(), Rollback(), Regularize(steps=200)])
    """

    name: ClassVar[str] = "regularize"
    deferrable: ClassVar[bool] = True
    uses_snapshots: ClassVar[bool] = True

    def __init__(self, *, steps: int = 100, pull: float = 0.1, decay: float = 0.01) -> None:
        self.steps = checks.whole("steps", steps, least=1)
        self.pull = checks.number("pull", pull, above=0.0, most=1.0)
        self.decay = checks.number("decay", decay, least=0.0, most=1.0)
        self._left = 0

    def apply(self, context: RemedyContext) -> Outcome:
        """Begin, or begin again at full strength."""
        self._left = self.steps
        snapshot = context.snapshots.latest
        how = "decaying" if snapshot is None else f"pulled towards those of step {snapshot.number}"
        return Outcome(self.name, True, f"weights are {how}, less and less for {self.steps} updates")

    @torch.no_grad()
    def before_update(self, context: RemedyContext) -> None:
        """Pull once, a little less than the last time."""
        if self._left == 0:
            return
        faded = self._left / self.steps
        self._left -= 1
        snapshot = context.snapshots.latest
        for name, parameter in context.parameters.items():
            if parameter.grad is None:
                continue  # It is not updated either.
            weight = local(parameter)
            if snapshot is None:
                if parameter.ndim >= 2:
                    weight.mul_(1.0 - faded * self.decay)
            elif name in snapshot.parameters:
                good = local(snapshot.parameters[name]).to(weight.device, non_blocking=True)
                weight.lerp_(good, faded * self.pull)

    def state_dict(self) -> dict[str, Any]:
        """Return for how many updates it goes on."""
        return {"left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._left = int(state["left"])
