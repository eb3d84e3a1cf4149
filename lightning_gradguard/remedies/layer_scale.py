"""Scale one layer by the signal that goes through it, so that its output has a deviation of 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_gradguard.statistics.norms import NARROW

SAMPLES = 16
"""Samples from which each unit's mean and deviation are worth something; with fewer, the layer's are taken."""
BY_UNIT = 0.5
"""Share of a layer's RMS in its units' deviations over the batch from which the layer is scaled as a whole, as in LSUV;
below, samples are becoming alike, and each unit is centred and scaled by itself. Centring everywhere makes gradients
grow by a fifth a layer."""
ALIVE = 1e-3
"""Share of the layer's RMS that a unit's deviation must have to be scaled by itself."""


@dataclass(slots=True)
class Scaled:
    """What was done to one layer, a number a unit: its weight, as drawn, was multiplied by ``scale``, its bias set."""

    layer: nn.Module
    drawn: Tensor
    scale: Tensor
    bias: Tensor


@torch.no_grad()
def scale_layer(layer: nn.Module, output: Tensor, deviation: float = 1.0) -> tuple[Scaled, Tensor, Tensor] | None:
    """Scale one layer to an output of mean 0 and a deviation; return what was done, and how the output changes."""
    held = layer._parameters.get("weight")
    if held is None:
        return None  # Pruned, or normalised in the old way: what multiplies is no parameter.
    weight = held.data
    if not bool(weight.any()) or not bool(output.isfinite().all()):
        return None
    axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1 if output.dim() > weight.dim() - 1 else 0
    transposed = isinstance(layer, _ConvTransposeNd)
    found = (
        _by_unit(output, axis) if axis and output.shape[0] >= SAMPLES and not transposed else _as_a_whole(output, axis)
    )
    if found is None:
        return None
    scale, shift = found[0] * deviation, found[1]
    shape = [1] * output.dim()
    shape[axis] = output.shape[axis]
    bias = layer._parameters.get("bias")
    if bias is None:
        shift = torch.zeros_like(shift)
    drawn = weight.clone()
    # Through .data: the graph of this very pass, whose step is skipped, must not find its weights changed.
    weight.mul_(_across(layer, weight, scale))
    if bias is not None:
        bias.data.copy_(((bias.data.to(shift.dtype) + shift) * scale).to(bias.dtype))
    kept = Scaled(layer, drawn, scale, bias.data.clone() if bias is not None else shift)
    return kept, scale.view(shape), shift.view(shape)


def _by_unit(output: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of each unit; of the layer as a whole where units differ over the batch as they should."""
    rest = [d for d in range(output.dim()) if d != axis]
    deviation = output.std(rest, correction=0)
    rms = float(wide(output).square().mean().sqrt())
    alive = deviation > ALIVE * rms
    if not bool(alive.any()):
        return None
    if float(wide(deviation).square().mean().sqrt()) >= BY_UNIT * rms:
        return _as_a_whole(output, axis)
    scale = torch.where(alive, 1.0 / deviation.clamp_min(1e-30), torch.ones_like(deviation))
    return scale, torch.where(alive, -output.mean(rest), torch.zeros_like(deviation))


def _as_a_whole(output: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """Return one scale for all units, and no shift; None where the output's deviation is no number to divide by."""
    whole, units = float(wide(output).std(correction=0)), output.shape[axis]
    if not torch.finfo(output.dtype).tiny < whole < math.inf:
        return None
    return output.new_full((units,), 1.0 / whole), output.new_zeros(units)


def _across(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the scale of each unit as what its weight is multiplied by; one number for a transposed convolution."""
    one = isinstance(layer, _ConvTransposeNd)
    return (scale[:1] if one else scale).view([-1] + [1] * (weight.dim() - 1)).to(weight.dtype)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the host where the device has none."""
    return (tensor.cpu() if tensor.device.type in NARROW else tensor).double()


def _like(tensor: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(tensor)


def agree(done: list[Scaled], mean: Callable[[list[float]], list[float]]) -> None:
    """Average scales (by their logarithms) and biases over the processes."""
    numbers = [v for one in done for v in (*one.scale.log().tolist(), *one.bias.tolist())]
    means = iter(mean(numbers))
    for one in done:
        scale = _like(one.scale, [math.exp(next(means)) for _ in range(one.scale.numel())])
        bias = _like(one.bias, [next(means) for _ in range(one.bias.numel())])
        weight: Tensor = one.layer._parameters["weight"].data  # type: ignore[union-attr]
        # From what was drawn: to divide by each process's own scale first would round differently on each.
        weight.copy_(one.drawn * _across(one.layer, weight, scale))
        own = one.layer._parameters.get("bias")
        if own is not None:
            own.data.copy_(bias.to(own.dtype))
