"""Gradient clipping: by global norm to the detector's limit, by value, adaptively per unit, or along the sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_gradguard import checks
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.statistics.norms import global_norm, host_norms, local


def unit_norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm of each unit (output row, filter), shape broadcastable to ``tensor``; of all for vectors.

    Source: Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021, section 4.
    """
    inner = tuple(range(1 if tensor.dim() > 1 else 0, tensor.dim()))
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=inner, keepdim=True) if inner else tensor.abs()
    return norm


def step_along_the_sign(parameters: Iterable[torch.nn.Parameter], target: float, grad_scale: float = 1.0) -> float:
    """Replace gradients by ``size * sign(gradient)`` in place, of the global norm ``target``; return ``size``.

    Of n elements that are not zero the signs have a norm of √n, so the size is ``target / √n``. Elements that are zero
    stay zero; of a complex one the phase is kept.
    """
    grads = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                # An element's sign is that of the sum of its duplicates.
                parameter.grad = parameter.grad.coalesce()
            local(parameter.grad).sign_() if not parameter.grad.is_complex() else parameter.grad.sgn_()
            grads.append(parameter.grad)
    length = global_norm(host_norms(grads, sharded=any(hasattr(g, "to_local") for g in grads)))
    size = target / length if length > 0.0 else 0.0
    if grads:
        torch._foreach_mul_(grads, size * grad_scale)
    return size


class Clip(Remedy):
    """Scale an oversized gradient down for one step.

    ``norm`` multiplies all gradients by ``target / norm``; the direction stays. ``value`` limits every element to
    ``clip_value``. ``adaptive`` limits each unit's gradient to ``clip_factor`` times its weight's norm (AGC).
    ``sign`` replaces every element by its sign, times the one size that makes the norm ``target``: which elements the
    explosion has made large is forgotten, which way each points is kept (signSGD; Bernstein et al., 2018).
    Applied to a step that a detector has called a spike; healthy steps are never touched.

    Args:
        algorithm: Which of the four.
        clip_value: Largest absolute element, for ``value``.
        clip_factor: Largest ``||gradient|| / ||weight||`` of a unit, for ``adaptive``.
    """

    name: ClassVar[str] = "clip"
    acts: ClassVar[frozenset[str]] = frozenset({Act.CLIP})
    deferrable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        algorithm: Literal["norm", "value", "adaptive", "sign"] = "norm",
        clip_value: float = 1.0,
        clip_factor: float = 0.01,
    ) -> None:
        self.algorithm = checks.choice("algorithm", algorithm, ("norm", "value", "adaptive", "sign"))
        self.clip_value = checks.number("clip_value", clip_value, above=0.0)
        self.clip_factor = checks.number("clip_factor", clip_factor, above=0.0)

    @property
    def on_device(self) -> bool:
        """Whether a device does the same by itself: clip by norm."""
        return self.algorithm == "norm"

    @torch.no_grad()
    def apply(self, context: RemedyContext) -> Outcome:
        """Clip the gradients in place; a gradient that is not finite cannot be clipped and is left to others."""
        norm = context.statistics.norm
        if not context.statistics.finite:
            return Outcome(self.name, applied=False, detail="a gradient that is not finite cannot be clipped")
        if self.algorithm in ("norm", "sign"):
            coefficient = min(1.0, context.target / norm) if norm > 0.0 else 1.0
            if self.algorithm == "sign" and coefficient < 1.0:
                size = step_along_the_sign(context.parameters.values(), context.target, context.grad_scale)
                detail = f"norm {norm:.3g} replaced by steps of {size:.3g} along the sign, norm {context.target:.3g}"
                return Outcome(self.name, True, detail, (), coefficient)
            grads = [p.grad for p in context.parameters.values() if p.grad is not None]
            if grads:
                torch._foreach_mul_(grads, coefficient)
            return Outcome(self.name, True, f"norm {norm:.3g} clipped to {norm * coefficient:.3g}", (), coefficient)
        for parameter in context.parameters.values():
            if parameter.grad is not None:
                self._clip_elements(parameter, context)
        return Outcome(self.name, True, f"clipped by {self.algorithm}")

    def _clip_elements(self, parameter: torch.nn.Parameter, context: RemedyContext) -> None:
        assert parameter.grad is not None
        weight = local(parameter)
        if parameter.grad.is_sparse:
            # The values of an uncoalesced gradient are a copy: what is clipped must be what is kept.
            parameter.grad = parameter.grad.coalesce()
            weight = weight[tuple(parameter.grad.indices())]
        grad = local(parameter.grad)
        if self.algorithm == "value":
            # Under a fused optimizer with a GradScaler the gradients at hand are still scaled.
            grad.clamp_(-self.clip_value * context.grad_scale, self.clip_value * context.grad_scale)
            return
        allowed = unit_norm(weight).clamp_(min=1e-3) * (self.clip_factor * context.grad_scale)
        norm = unit_norm(grad)
        grad.mul_((allowed / norm.clamp(min=1e-6)).clamp_(max=1.0))
