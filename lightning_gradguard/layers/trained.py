"""What one optimizer trains: its parameters by name, and the buffers of the layers that they belong to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_gradguard.layers.names import clean


class Trained:
    """Look up what an optimizer trains, again where its parameter groups have changed.

    Args:
        index: Position of the optimizer.
        module: The root module.
        optimizer: The optimizer.

    Attributes:
        groups: The parameter groups that were looked up.
        regrouped: Whether they were others before.
        parameters: Parameters by name.
        sharded: Whether some are DTensors.
        device: Kind of the device that they are on.
        followers: Averages of the module's weights, kept by others, that go back with them.
        copies: Copies of the parameters that the module itself keeps, by name, which go back with them too.
    """

    def __init__(self, index: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._index, self._module, self._optimizer = index, module, optimizer
        self.groups: list[tuple[int, int]] = []
        self.regrouped = False
        self._names: tuple[str, ...] = ()
        self.parameters: dict[str, nn.Parameter] = {}
        self.sharded, self.device = False, "cpu"
        self.followers: tuple[nn.Module, ...] = ()
        self.copies: dict[str, Tensor] = {}

    def changed(self) -> bool:
        """Return whether parameter groups have changed since the last time, and look parameters up if they have."""
        groups = [(id(g["params"]), len(g["params"])) for g in self._optimizer.param_groups]
        if groups == self.groups:
            return False
        self.regrouped, self.groups = bool(self.groups), groups
        names = {id(p): clean(name) for name, p in self._module.named_parameters()}
        found = [p for group in self._optimizer.param_groups for p in group["params"]]
        self.parameters = {names.get(id(p), f"parameter_{i}"): p for i, p in enumerate(found)}
        self._names = tuple(self.parameters)
        self.sharded = any(hasattr(p, "to_local") for p in found)
        self.device = found[0].device.type if found else "cpu"
        self.copies |= {} if self.sharded else self._kept_copies()
        return True

    def gradients(self) -> tuple[tuple[str, ...], list[Tensor]]:
        """Return the names of the parameters that have a gradient, and the gradients."""
        # Asked at every step, and .grad is slow: once a parameter where all have one.
        grads = [grad for p in self.parameters.values() if (grad := p.grad) is not None]
        if len(grads) == len(self._names):
            return self._names, grads
        return tuple(name for name, p in self.parameters.items() if p.grad is not None), grads

    def buffers(self) -> dict[str, Tensor]:
        """Return persistent buffers of the layers that this optimizer trains; the first has those of others too.

        With them go the copies of its parameters that the module keeps by itself, a target network or an average: no
        optimizer trains them, and they were equal when this one was met.
        """
        mine = {id(p) for p in self.parameters.values()}
        found = {}
        for name, layer in self._module.named_modules():
            if not layer._buffers:
                continue
            own = list(layer.parameters(recurse=False))
            if any(id(p) in mine for p in own) or (not own and self._index == 0):
                for key, buffer in layer.named_buffers(name, recurse=False):
                    if key.rpartition(".")[2] not in layer._non_persistent_buffers_set:
                        found[clean(key)] = buffer
        return found | self._averages() | self.copies

    @torch.no_grad()
    def _kept_copies(self) -> dict[str, Tensor]:
        """Return what the module keeps as a copy of a parameter, and nobody trains: a target network, an average."""
        averages = [layer for layer in self._module.modules() if isinstance(layer, AveragedModel)]
        averaged = {id(p) for layer in averages for p in layer.parameters()}
        mine = {id(p) for p in self.parameters.values()}
        found = {
            clean(name): p
            for name, p in self._module.named_parameters()
            if id(p) not in mine and (id(p) in averaged or not p.requires_grad) and _has_numbers(p)
        }
        if not found:
            return {}  # As in most runs.
        kinds: dict[tuple[str, torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
        for name, p in self.parameters.items():
            if _has_numbers(p):
                kinds.setdefault(_kind(name, p), []).append(p)
        return {n: p for n, p in found.items() if any(torch.equal(p, one) for one in kinds.get(_kind(n, p), []))}

    def _averages(self) -> dict[str, Tensor]:
        """Return averages of the weights kept beside the module (EMA, SWA), by name; the first optimizer has them."""
        if self._index:
            return {}
        return {
            f"average{i}.{name}": value
            for i, average in enumerate(self.followers)
            for name, value in (*average.named_parameters(), *average.named_buffers())
        }


def _kind(name: str, p: Tensor) -> tuple[str, torch.Size, torch.dtype, torch.device]:
    """Return what a parameter and its copy have in common, besides their numbers at first."""
    return name.rpartition(".")[2], p.shape, p.dtype, p.device


def _has_numbers(p: Tensor) -> bool:
    """Return whether a parameter can be compared: one that is lazy, or on the meta device, has no numbers yet."""
    return not is_lazy(p) and not p.is_meta and p.layout is torch.strided
