"""A snapshot whose tensors are shards, made whole for a checkpoint, and cut again by the run that is resumed from it.

A checkpoint of Lightning's holds what the first process knows: the shards of the others would be lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.snapshots.budget import left
from lightning_gradguard.snapshots.snapshot import Snapshot
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.sharding import comparable, cut, gathered, sharded


@torch.no_grad()
def whole(
    snapshot: Snapshot, parameters: Mapping[str, nn.Parameter], collectives: Collectives, *, share: float
) -> Snapshot | None:
    """Return a snapshot of shards with its tensors whole, on the first process; None on the others, and where there is no memory for it.

    Every process must call this at the same point, with the same snapshot.

    Args:
        snapshot: What this process holds.
        parameters: The parameters whose shards it holds.
        collectives: The processes that hold the others.
        share: Share of what the host has left that the whole may take.
    """
    mine = {name: p for name, p in parameters.items() if name in snapshot.parameters}
    size = sum(
        p.numel() * value.element_size()
        for name, p in mine.items()
        for value in (snapshot.parameters[name], *_parts(snapshot, name, p).values())
    )
    if collectives.mean([float(collectives.rank == 0 and size > share * left())]) > [0.0]:
        return None
    keep = collectives.rank == 0
    values, state = {}, {}
    for name, p in mine.items():
        values[name] = _gathered(snapshot.parameters[name], p, keep=keep)
        state[name] = dict(snapshot.optimizer_state.get(name, {}))
        # In one order on all: a process without elements of its own has the same keys.
        for key, part in sorted(_parts(snapshot, name, p).items()):
            state[name][key] = _gathered(part, p, keep=keep)
    known = {name: held for name, held in state.items() if name in snapshot.optimizer_state}
    return dataclasses.replace(snapshot, parameters=values, optimizer_state=known) if keep else None


def parts(snapshot: Snapshot, parameters: Mapping[str, nn.Parameter]) -> Snapshot:
    """Return a snapshot of whole tensors as what this process holds of it."""
    values = {
        name: cut(value, parameters[name]) if name in parameters else value
        for name, value in snapshot.parameters.items()
    }
    state = {
        name: {
            key: cut(value, parameters[name]) if isinstance(value, Tensor) and name in parameters else value
            for key, value in held.items()
        }
        for name, held in snapshot.optimizer_state.items()
    }
    return dataclasses.replace(snapshot, parameters=values, optimizer_state=state)


def _parts(snapshot: Snapshot, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return what of a parameter's optimizer state is cut as the parameter is."""
    held: dict[str, Any] = snapshot.optimizer_state.get(name, {})
    return {
        key: value
        for key, value in held.items()
        if isinstance(value, Tensor) and value.dim() and sharded(parameter) and comparable(value, parameter)
    }


def _gathered(part: Tensor, like: nn.Parameter, *, keep: bool) -> Tensor:
    found = gathered(part, like)
    return found.to("cpu", copy=True) if keep else torch.empty(0)
