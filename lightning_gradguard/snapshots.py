"""Snapshots of parameters, buffers and optimizer state in host memory, for rollback and layer repair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state known to be good, in host memory.

    Args:
        step: Optimizer steps made before it was taken.
        parameters: Parameter values by name.
        buffers: Buffer values by name.
        optimizer_state: ``optimizer.state[parameter]`` by parameter name; empty before the first update.
    """

    step: int
    parameters: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)
    optimizer_state: dict[str, dict[str, Any]] = field(repr=False)


class SnapshotStore:
    """Keep the newest snapshots that are known to be good; placeholder until the room is furnished."""

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot, or None."""
        return None
