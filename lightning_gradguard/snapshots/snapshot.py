"""One state of a run in host memory, and going back to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_gradguard.statistics.sharding import as_part, comparable

HOST_ENTRIES = frozenset({"step", "mu_product"})
"""Entries of an optimizer's state that torch keeps on the host, unless it is fused or capturable."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state known to be good, in host memory.

    Args:
        step: Optimizer steps made before it was taken.
        parameters: Parameter values by name; of a sharded parameter this rank's shard.
        buffers: Buffer values by name.
        optimizer_state: ``optimizer.state[parameter]`` by parameter name; empty before the first update.
        extra: What the guard itself knew then (its baseline), restored together with the weights.
    """

    step: int
    parameters: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)
    optimizer_state: dict[str, dict[str, Any]] = field(repr=False)
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def updates(self) -> int:
        """Accepted updates that lie behind it."""
        return int(self.extra.get("baseline", {}).get("count", self.step))

    @property
    def number(self) -> int:
        """The step before which it was taken, as the record counts: with several optimizers the trainer's."""
        return int(self.extra.get("number", self.step))


class LiveState(NamedTuple):
    """The state of one optimizer's training as it is now, from which a snapshot is copied.

    Args:
        parameters: Its parameters by name.
        buffers: Buffers by name.
        optimizer: The optimizer.
    """

    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer


def _write(target: Tensor, source: Tensor) -> None:
    (target.to_local() if hasattr(target, "to_local") else target).copy_(source)


def plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as a dict of the very same tensors."""
    return {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}


@torch.no_grad()
def restore(
    snapshot: Snapshot,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[str, ...]:
    """Write a snapshot back, in place, and return the names of the parameters written.

    Autograd is not told: a graph that lives on, for another optimizer's backward pass, would refuse to go on otherwise.
    Learning rates and other ``param_groups`` entries are left alone: they belong to the schedulers, and restoring
    them would shift the recursive ones. A parameter that had no optimizer state then has none afterwards.
    """
    written = []
    for name, parameter in parameters.items():
        if name not in snapshot.parameters:
            continue
        _write(parameter.data, snapshot.parameters[name])
        restore_optimizer_state(optimizer, parameter, snapshot.optimizer_state.get(name))
        written.append(name)
    for name, buffer in buffers.items():
        if name in snapshot.buffers:
            _write(buffer.data, snapshot.buffers[name])
    return tuple(written)


def forget(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Remove all that the optimizer knows of one parameter, its step count included."""
    if optimizer.state.pop(parameter, None) and isinstance(optimizer, torch.optim.Adagrad):
        # It makes its state in the constructor, and in older versions of torch nowhere else.
        optimizer.state.update(type(optimizer)([parameter], **optimizer.defaults).state)


@torch.no_grad()
def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: Mapping[str, Any] | None
) -> None:
    """Write one parameter's optimizer state back, keeping the live tensors where they fit; None clears it."""
    if not saved:
        forget(optimizer, parameter)
        return
    live = optimizer.state[parameter]
    for key in [k for k in live if k not in saved]:
        del live[key]
    for key, value in saved.items():
        current = live.get(key)
        if isinstance(value, Tensor) and isinstance(current, Tensor) and comparable(value, current):
            _write(current, value)
        elif isinstance(value, Tensor):
            live[key] = as_part(value.to(_home(optimizer, parameter, key), copy=True), parameter)
        else:
            live[key] = tree_map_only(Tensor, lambda t: t.to(parameter.device, copy=True), value)


def _home(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str) -> torch.device:
    """Return where the optimizer keeps an entry of a parameter's state that has been removed."""
    for other, state in optimizer.state.items():
        known = state.get(key) if other is not parameter and isinstance(state, dict) else None
        if isinstance(known, Tensor):
            # As with the others: ASGD counts on the device, most on the host.
            return known.device if known.is_cpu else parameter.device
    # Nobody is left to tell: the rule of Optimizer.load_state_dict.
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    counted = key in HOST_ENTRIES and not (group.get("fused") or group.get("capturable"))
    return torch.device("cpu") if counted and not isinstance(optimizer, torch.optim.ASGD) else parameter.device
