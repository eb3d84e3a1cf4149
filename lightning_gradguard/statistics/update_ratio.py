"""Scale-free ratios of updates to weights, which tell something of a first step, when there is no history."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.fan import expected_rms
from lightning_gradguard.layers.names import layer_of, layers
from lightning_gradguard.statistics.norms import gradient_norms

# Families whose updates have a known size: lr * gradient, lr for every element whatever the gradient, or a step of its
# own for each element.
PROPORTIONAL = {"SGD"}
NORMALISED = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop"}
STEPPED = {"Rprop"}
BOUNDED = NORMALISED | STEPPED | {"Adadelta", "Adagrad", "Lion"}
"""Those whose updates do not grow with the gradient, the ones included whose size is not foretold here."""


@torch.no_grad()
def update_ratio(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, grad_scale: float = 1.0
) -> float | None:
    """Return the largest ``||update|| / ||weight||`` that the gradients foretell; None where an update is not known.

    Args:
        module: The root module.
        parameters: The parameters, by name.
        optimizer: The optimizer that is about to step.
        grad_scale: What the gradients are still multiplied by.
    """
    family = type(optimizer).__name__
    if family not in PROPORTIONAL | NORMALISED | STEPPED:
        return None
    rates = {id(p): float(g.get("lr") or 0.0) for g in optimizer.param_groups for p in g["params"]}
    weights = {p: fan for p, fan in _matrices(module, parameters) if p.grad is not None}
    norms = _norms([p.detach() for p in weights])
    gradients = _norms([p.grad for p in weights if p.grad is not None])
    if family in PROPORTIONAL:
        updates = [rates[id(p)] * norm / grad_scale for p, norm in zip(weights, gradients, strict=True)]
    elif family in NORMALISED or not all("step_size" in optimizer.state.get(p, {}) for p in weights):
        updates = [rates[id(p)] * math.sqrt(p.numel()) for p in weights]
    else:
        growth = max(float(group["etas"][1]) for group in optimizer.param_groups)
        updates = [growth * size for size in _norms([optimizer.state[p]["step_size"] for p in weights])]
    against = [max(norm, expected) for norm, expected in zip(norms, weights.values(), strict=True)]
    return max((update / weight for update, weight in zip(updates, against, strict=True)), default=0.0)


@torch.no_grad()
def moved(module: nn.Module, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> float:
    """Return the largest ``||change|| / ||weight||`` since a copy of the weights was made.

    Args:
        module: The root module.
        parameters: The parameters, by name, on any device.
        before: Their values at that time, by the same names, on the host.
    """
    ratio, names = 0.0, {id(p): name for name, p in parameters.items()}
    for p, expected in _matrices(module, parameters):
        if (old := before.get(names[id(p)])) is not None:
            change, weight = _norms([p.detach().cpu().float() - old.float(), old.float()])
            ratio = max(ratio, change / max(weight, expected))
    return ratio


def _matrices(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[nn.Parameter, float]]:
    """Yield the matrices and kernels of known layers, each with the least norm that it counts with, by its fan.

    Biases and norms start at zero or one and are replaced without harm; a custom parameter may start anywhere, and
    nobody knows what it should weigh.
    """
    owners = layers(module)
    for name, p in parameters.items():
        owner = layer_of(name)
        if owner in owners and p.dim() > 1 and _measurable(p):
            expected = expected_rms(owners[owner], name[len(owner) + 1 :] if owner else name)
            if expected is not None:
                yield p, expected * math.sqrt(p.numel())


def build_up(optimizer: torch.optim.Optimizer) -> float:
    """Return how many times the first one an update of SGD becomes as its momentum fills: a geometric series."""
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
    # A sharded tensor counts as a whole, or ranks would come to different verdicts.
    norms: list[float] = gradient_norms(tensors, sharded=any(hasattr(t, "to_local") for t in tensors)).tolist()
    return norms
