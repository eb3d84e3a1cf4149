"""What can be said of a first step, when there is no history: scale-free ratios of weights and updates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.fan import expected_rms
from lightning_gradguard.layers.names import layer_of, layers
from lightning_gradguard.statistics.norms import gradient_norms

# Families whose first update has a known size: lr * gradient, or lr for every element whatever the gradient.
PROPORTIONAL = {"SGD"}
NORMALISED = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop"}
BOUNDED = NORMALISED | {"Adadelta", "Adagrad", "Lion", "Rprop"}
"""Those whose updates do not grow with the gradient, the ones included whose size is not foretold here."""


@torch.no_grad()
def first_look(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, grad_scale: float = 1.0
) -> tuple[float | None, float, float]:
    """Measure the first update against the weights.

    Updates are measured against matrices and kernels only: biases and norms start at zero or one and are replaced
    without harm. A weight that
    starts at or near zero on purpose counts with the RMS that its fan calls for.

    Returns:
        The largest predicted ``||update|| / ||weight||`` (None for an optimizer whose update is not known), the global
        norm of the weights, each counted with no more than its fan calls for, and the largest RMS of a weight over that.
    """
    rates = {id(p): float(g.get("lr") or 0.0) for g in optimizer.param_groups for p in g["params"]}
    weights = {n: p for n, p in parameters.items() if _measurable(p) and (p.dim() > 1 or n.endswith("weight"))}
    if not weights:
        return None, math.inf, 0.0
    norms = _norms([p.detach() for p in weights.values()])
    held = {name: p.grad for name, p in weights.items() if p.grad is not None and p.dim() > 1}
    gradients = dict(zip(held, _norms(list(held.values())), strict=True))
    family = type(optimizer).__name__
    owners = layers(module)
    ratio, excess, total = 0.0, 0.0, 0.0
    for (name, p), norm in zip(weights.items(), norms, strict=True):
        owner = layer_of(name)
        local_name = name[len(owner) + 1 :] if owner else name
        expected = expected_rms(owners[owner], local_name) if owner in owners else None
        size = math.sqrt(p.numel())
        total += min(norm, expected * size if expected else norm) ** 2
        if expected:
            excess = max(excess, norm / (expected * size))
        if name not in gradients or p.dim() < 2 or expected is None:
            continue  # A custom parameter may start anywhere, at zero for example: nobody knows what it should weigh.
        update = size if family in NORMALISED else gradients[name] / grad_scale
        ratio = max(ratio, rates[id(p)] * update / max(norm, expected * size))
    known = family in PROPORTIONAL | NORMALISED
    return ratio if known else None, math.sqrt(total), excess


@torch.no_grad()
def moved(module: nn.Module, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> float:
    """Return the largest ``||change|| / ||weight||`` of the matrices and kernels since a copy of them was made, as in :func:`first_look`.

    Args:
        module: The root module.
        parameters: The parameters, on any device.
        before: Their values at that time, by the same names, on the host.
    """
    owners, ratio = layers(module), 0.0
    for name, p in parameters.items():
        owner = layer_of(name)
        fan = expected_rms(owners[owner], name[len(owner) + 1 :] if owner else name) if owner in owners else None
        if fan is None or p.dim() < 2 or not _measurable(p) or name not in before:
            continue
        old = before[name].float()
        change, weight = _norms([p.detach().cpu().float() - old, old])
        ratio = max(ratio, change / max(weight, fan * math.sqrt(p.numel())))
    return ratio


def build_up(optimizer: torch.optim.Optimizer) -> float:
    """Return how many times larger than the first one an update of SGD becomes as its momentum fills: a geometric series."""
    if type(optimizer).__name__ not in PROPORTIONAL:
        return 1.0
    group = optimizer.param_groups[0]
    momentum, dampening = float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0))
    return 1.0 if not 0.0 < momentum < 1.0 else max(1.0, (1.0 - dampening) / (1.0 - momentum))


def _measurable(parameter: nn.Parameter) -> bool:
    # A lazy one has no values before the first batch; one of integers is a quantised weight.
    return (
        not is_lazy(parameter) and parameter.numel() > 0 and (parameter.is_floating_point() or parameter.is_complex())
    )


def _norms(tensors: list[Tensor]) -> list[float]:
    # Of a sharded tensor the whole counts, or ranks would come to different verdicts.
    norms: list[float] = gradient_norms(tensors, sharded=any(hasattr(t, "to_local") for t in tensors)).tolist()
    return norms
