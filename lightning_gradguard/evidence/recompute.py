"""A bad step computed again on the spot. One idea: what differs from three more times is the machine's doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_gradguard.evidence.hand import Moment
from lightning_gradguard.evidence.randomness import as_they_were

TIMES = 3
ROUNDING = 1e-3
"""Share of a number that is rounding: sums are taken in another order. No incident begins with less."""
Compute = Callable[[Any, int | None], Tensor]
"""Returns the loss of a batch and its number, with nothing logged."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One number of a step: as it was, and as it is computed again.

    Args:
        what: What it is.
        then: What it was.
        again: What it is each time.
    """

    what: str
    then: float
    again: tuple[float, ...]

    @property
    def odd(self) -> bool:
        """Whether it was not what it is computed to be again, beyond the spread of the times among themselves."""
        finite = [value for value in self.again if math.isfinite(value)]
        if len(finite) < len(self.again):
            return not finite and math.isfinite(self.then)
        if not math.isfinite(self.then):
            return True
        low, high = min(finite), max(finite)
        spread = (high - low) + ROUNDING * max(abs(low), abs(high))
        return not low - spread <= self.then <= high + spread

    def __str__(self) -> str:
        """Return it as a sentence."""
        values = " and ".join(sorted({f"{value:.6g}" for value in self.again}))
        return f"{self.what} was {self.then:.6g}, and computed {len(self.again)} times again it is {values}"


def recomputed(
    module: nn.Module, moments: Sequence[Moment], compute: Compute, *, loss: float | None, norm: float | None
) -> tuple[Recomputed, ...]:
    """Compute the loss of a step again, and its gradient norm where that is asked for; leave everything as it was.

    Weights, buffers, gradients and random states are those of before; what a module counts in plain attributes is not.

    Args:
        module: The module, with the weights of before the step.
        moments: The forward passes of the step, with their batches.
        compute: Returns the loss of a batch.
        loss: What the mean of their losses was, or None.
        norm: What the norm of the gradient of a single pass was; None where it is not to be compared.
    """
    found = [_once(module, moments, compute) for _ in range(TIMES)]
    told = []
    if loss is not None:
        told.append(Recomputed("the loss", loss, tuple(mean for mean, _ in found)))
    if norm is not None and len(moments) == 1:
        told.append(Recomputed("the gradient norm", norm, tuple(length for _, length in found)))
    return tuple(told)


def _once(module: nn.Module, moments: Sequence[Moment], compute: Compute) -> tuple[float, float]:
    """Return the mean loss of all passes, and the gradient norm of the last."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    losses, norm = [], math.nan
    try:
        for moment in moments:
            with as_they_were(moment.random), torch.enable_grad():
                batch = tree_map_only(Tensor, torch.clone, moment.batch)
                loss = compute(batch, moment.batch_index)
                # Not backward(): hooks that average gradients over processes must not hear of it.
                grads = torch.autograd.grad(loss, trained, allow_unused=True)
            losses.append(float(loss.detach()))
            norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads if g is not None]
            norm = float(torch.stack([n.cpu() for n in norms]).norm()) if norms else 0.0
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return sum(losses) / len(losses), norm
