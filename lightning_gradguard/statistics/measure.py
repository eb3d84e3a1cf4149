"""From a step's gradients, weights and loss to its statistics on the host; nothing is learned here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.statistics.joint_loss import value_of
from lightning_gradguard.statistics.norms import examine, global_norm, host_norms
from lightning_gradguard.statistics.update_ratio import BOUNDED, PROPORTIONAL, STEPPED, moved, update_ratio


def scale_of(optimizer: torch.optim.Optimizer, scaler: Any) -> float:
    """Return what the gradients at hand are still multiplied by: a fused optimizer unscales them inside its kernel."""
    return float(scaler.get_scale()) if still_scaled(optimizer, scaler) else 1.0


def still_scaled(optimizer: torch.optim.Optimizer, scaler: Any) -> bool:
    """Return whether a GradScaler has left the gradients scaled, since the optimizer's kernel divides them itself."""
    if scaler is None or not scaler.is_enabled() or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    # Some loops unscale them all the same, in order to clip.
    stage = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer), {}).get("stage")
    return getattr(stage, "name", "") != "UNSCALED"


def measure(
    names: tuple[str, ...],
    grads: list[Tensor],
    *,
    step: int,
    loss: Tensor | float | Callable[[float], float | None] | None,
    rate: float | None,
    scale: float = 1.0,
    sharded: bool = False,
    scaled: bool = False,
) -> GradientStatistics:
    """Reduce the gradients of a step to numbers on the host, waiting for the device where there is one.

    Args:
        names: Names of the parameters that have a gradient.
        grads: Their gradients.
        step: Number of the step.
        loss: The loss of the step, or what returns it, given the global norm.
        rate: Its learning rate.
        scale: What the gradients are still multiplied by.
        sharded: True if some gradients are DTensors.
        scaled: True if a GradScaler owns the step.
    """
    norms = host_norms(grads, sharded=sharded)
    if scale != 1.0:
        norms = norms / scale
    norm = global_norm(norms)
    known = loss(norm) if callable(loss) else value_of(loss)
    statistics = GradientStatistics(step, names, norms, norm, known, rate=rate, scaled=scaled)
    return statistics if statistics.finite else _exactly(statistics, grads, scale, sharded=sharded)


def _exactly(statistics: GradientStatistics, grads: list[Tensor], scale: float, *, sharded: bool) -> GradientStatistics:
    norms, counts = examine(grads, sharded=sharded)
    norms = norms / scale
    bad = tuple((name, count) for name, count in zip(statistics.names, counts, strict=True) if count)
    return dataclasses.replace(statistics, norms=norms, norm=global_norm(norms), nonfinite=bad)


def with_update(
    statistics: GradientStatistics,
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    scale: float = 1.0,
    factor: float = 1.0,
    first: Mapping[str, Tensor] | None = None,
    loaded: bool = False,
) -> GradientStatistics:
    """Return the statistics with the size of the update against the weights.

    Args:
        statistics: The gradients of the step.
        module: The root module.
        parameters: The optimizer's parameters, by name.
        optimizer: The optimizer that is about to step.
        scale: What the gradients are still multiplied by.
        factor: Factor on the learning rate now: a rate that was backed off already makes a smaller update.
        first: The weights before the very first update, where that was the last one: what an optimizer does that nobody
            foretells, or by a state that was loaded, is seen in what it did.
        loaded: Whether the optimizer's state was there before the first update.
    """
    ratio = update_ratio(module, parameters, optimizer, scale)
    ratio = ratio * factor if ratio is not None else None
    # What momentum makes of SGD's is foretold from the gradient, whether it is filled already or not.
    spoilt = loaded and type(optimizer).__name__ not in PROPORTIONAL
    if first is not None and (ratio is None or spoilt):
        ratio = max(ratio or 0.0, moved(module, parameters, first))
    family = type(optimizer).__name__
    return dataclasses.replace(statistics, update_ratio=ratio, normalised=family in BOUNDED, by_sign=family in STEPPED)
