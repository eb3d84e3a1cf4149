"""Train a layer as if what it takes in were standardised. One idea: a change of variables that changes no function.

Columns of wild scale make the curvature of the layer that takes them in that of the largest, whatever its weights are
(LeCun et al., 1998, section 4.3). With mean m and deviation s of each column, W x + b is W' z + b' of z = (x - m) / s,
where W' = W s and b' = b + W m. The optimizer is given the gradient of W', and what it makes of it is brought back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_gradguard.attribution.signal import WILD
from lightning_gradguard.layers.names import layers
from lightning_gradguard.remedies.layer_scale import SAMPLES
from lightning_gradguard.remedies.remedy import RemedyContext
from lightning_gradguard.snapshots.snapshot import forget
from lightning_gradguard.statistics.update_ratio import NORMALISED, PROPORTIONAL

CONSTANT = 1e-4
"""Deviation of a column over its RMS below which it counts as constant: single precision would leave it three digits
after its mean is taken off."""

UTMOST = 4.0
"""Deviations from the mean beyond which no value of the batch lies: the deviation of a rare one is taken larger."""


@dataclass(slots=True)
class Columns:
    """Mean and deviation of each column that a layer takes in, as they fit its weight."""

    mean: Tensor
    deviation: Tensor


@dataclass(slots=True)
class Pending:
    """A layer in an update that is about to be made.

    Args:
        columns: What it takes in.
        weight: Its weight.
        bias: Its bias.
        held: The weight from before.
        raw: The gradient that came.
        given: What the optimizer is given instead, and its version: who zeroes it makes it another.
        decayed: The parameter group, where its weight decay takes a share of the weight itself.
    """

    columns: Columns
    weight: nn.Parameter
    bias: Tensor | None
    held: Tensor
    raw: Tensor
    given: tuple[Tensor, int]
    decayed: dict[str, Any] | None


def fits(layer: nn.Module) -> bool:
    """Return whether a layer is of a kind whose columns can be standardised."""
    if type(layer) is nn.Linear:
        return layer.weight.dtype in (torch.float32, torch.float64)
    plain = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) and layer.groups == 1
    return plain and layer.weight.dtype in (torch.float32, torch.float64)


def suits(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the updates of an optimizer are known to be made of gradients alone, once a step, in one process.

    One that evaluates the loss within its step, or goes by the size of a weight, would take the one for the other.
    """
    distributed = torch.distributed
    alone = not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
    if not alone or type(optimizer).__name__ not in PROPORTIONAL | NORMALISED | {"Adagrad"}:
        return False
    # A fused one may be given gradients of a scale that is not known in time, to which decay cannot be added.
    return not any(
        g.get("fused") and g.get("weight_decay") and not _decoupled(optimizer, g) for g in optimizer.param_groups
    )


class StandardInputs:
    """Standardise what layers take in, from the batch in which that is found to be wild.

    Attributes:
        waiting: Names of layers whose columns the next batch is asked for.
        columns: Those that were found to be wild, by the layer's name.
    """

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.columns: dict[str, Columns] = {}
        self._first = True
        self._layers: dict[str, nn.Module] = {}
        self._pending: list[Pending] = []

    def begin(self) -> None:
        """Begin anew: the next batch tells."""
        self.waiting, self.columns, self._layers, self._pending, self._first = [], {}, {}, [], True

    def forget(self, context: RemedyContext) -> None:
        """Train as before; what the optimizer knows is of other variables, and is forgotten too."""
        found = layers(context.module)
        for name in self.columns:
            if isinstance(weight := getattr(found.get(name), "weight", None), nn.Parameter):
                forget(context.optimizer, weight)
        self.begin()

    @torch.no_grad()
    def meet(self, name: str, layer: nn.Module, inputs: Any, *, made: bool) -> None:
        """Take the columns of the first batch, and have weights that were drawn for standard ones fit them.

        Args:
            name: The layer's name.
            layer: The layer.
            inputs: What it takes in.
            made: Whether that is, or may be, what trained parts have made of the batch, and will make otherwise.
        """
        if name not in self.waiting:
            return
        self.waiting.remove(name)
        first, self._first = self._first, False
        if not isinstance(inputs, Tensor) or (made and not first):
            return
        if (found := wild(layer, inputs.detach(), learned=made)) is None:
            return
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        # Through .data: the graph of this very pass, whose step is skipped, must not find its weights changed.
        weight.data.div_(found.deviation)
        if bias is not None:
            bias.data.sub_(_through(weight.data, found.mean))
        self.columns[name] = found

    @torch.no_grad()
    def before_update(self, context: RemedyContext) -> None:
        """Give the optimizer the gradients of weights for standardised columns."""
        if not self.columns:
            return
        self.after_update()
        if not self._layers:
            self._layers = layers(context.module)
        groups = {id(p): group for group in context.optimizer.param_groups for p in group["params"]}
        for name, columns in self.columns.items():
            parameters = self._layers[name]._parameters
            weight, bias = parameters.get("weight"), parameters.get("bias")
            if weight is None or weight.grad is None or id(weight) not in groups:
                continue
            columns.mean, columns.deviation = columns.mean.to(weight), columns.deviation.to(weight)
            group, raw = groups[id(weight)], weight.grad
            given = raw if bias is None or bias.grad is None else raw - _to_units(bias.grad, raw) * columns.mean
            given = given / columns.deviation
            decoupled = _decoupled(context.optimizer, group)
            if (decay := float(group.get("weight_decay") or 0.0)) and not decoupled:
                # What is added to the gradient of one weight is to be the decay of the other.
                sign = -1.0 if group.get("maximize") else 1.0
                given += (sign * decay * context.grad_scale) * weight * (columns.deviation - 1.0)
            weight.grad = given
            held, decayed = weight.detach().clone(), group if decay and decoupled else None
            self._pending.append(Pending(columns, weight, bias, held, raw, (given, given._version), decayed))

    @torch.no_grad()
    def after_update(self) -> None:
        """Bring back what the optimizer has made of them; nothing is changed where no update was made."""
        pending, self._pending = self._pending, []
        for one in pending:
            given, version = one.given
            if one.weight.grad is given and given._version == version:
                one.weight.grad = one.raw
            made = one.weight - one.held
            change = made / one.columns.deviation
            if (group := one.decayed) is not None:
                # A share of each weight, whatever it is a weight of; at the rate that the update was made with.
                share = group["lr"] * group["weight_decay"] * one.held
                change = torch.where(made.any(), (made + share) / one.columns.deviation - share, change)
            one.weight.data.copy_(one.held + change)
            if one.bias is not None:
                one.bias.data.sub_(_through(change, one.columns.mean))

    def state_dict(self) -> dict[str, Any]:
        """Return what was found of the columns, and which layers wait for it."""
        return {
            "waiting": list(self.waiting),
            "mean": {name: columns.mean.clone() for name, columns in self.columns.items()},
            "deviation": {name: columns.deviation.clone() for name, columns in self.columns.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.begin()
        self.waiting = [str(name) for name in state["waiting"]]
        self.columns = {str(name): Columns(mean, state["deviation"][name]) for name, mean in state["mean"].items()}


def wild(layer: nn.Module, inputs: Tensor, *, learned: bool = False) -> Columns | None:
    """Return the columns that a layer takes in, if their scale is wild.

    Args:
        layer: A linear layer or a convolution.
        inputs: What it takes in.
        learned: Whether some of the columns come from what is trained, which will change them: only those of wild scale
            are standardised then, as data among embeddings are.
    """
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or not inputs.is_floating_point() or not bool(inputs.isfinite().all()):
        return None
    axis = inputs.dim() - 1 if isinstance(layer, nn.Linear) else inputs.dim() - weight.dim() + 1
    flat = inputs.movedim(axis, -1).reshape(-1, inputs.shape[axis]).double()
    rms = flat.square().mean(0).sqrt()
    largest, usual = float(rms.max()), float(rms.median())
    if not (usual > WILD or largest > WILD * max(usual, 1.0) or 0.0 < largest < 1.0 / WILD):
        return None
    centred = bias is not None and bias.requires_grad and len(flat) >= SAMPLES
    mean = flat.mean(0) if centred else torch.zeros_like(rms)
    deviation = flat.std(0, correction=0) if centred else rms
    # A value that is rare is not to outweigh all that is usual.
    deviation = torch.maximum(deviation, (flat - mean).abs().amax(0) / UTMOST)
    # What is constant is taken off, and would have the scale of its size if it should ever vary.
    deviation = torch.where(deviation > CONSTANT * rms, deviation, rms)
    # Of numbers so small the weights would be too large for anything to be added to them.
    left = rms < torch.finfo(weight.dtype).eps ** 2
    if learned:
        left |= rms <= WILD * max(usual, 1.0)
    mean, deviation = mean.masked_fill(left, 0.0), deviation.masked_fill(left, 1.0)
    shape = [1, -1] + [1] * (weight.dim() - 2)
    return Columns(mean.view(shape).to(weight), deviation.view(shape).to(weight))


def _through(weight: Tensor, mean: Tensor) -> Tensor:
    """Return what a layer makes of the means of its columns, for each of its units."""
    return (weight * mean).flatten(1).sum(1)


def _to_units(numbers: Tensor, like: Tensor) -> Tensor:
    """Return a number for each unit in the shape of a weight."""
    return numbers.view([-1] + [1] * (like.dim() - 1))


def _decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Return whether weight decay takes a share of the weight itself, and is not added to its gradient."""
    return bool(group.get("decoupled_weight_decay", type(optimizer).__name__ == "AdamW"))
