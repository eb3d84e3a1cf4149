"""The run's own last checkpoint as a snapshot, where there is no memory for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gradguard.layers.names import clean
from lightning_gradguard.snapshots.snapshot import LiveState, Snapshot
from lightning_gradguard.statistics.collectives import Collectives


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds, its tensors still on the disk.

    Args:
        weights: Parameters and buffers by name.
        optimizers: The state of each optimizer, as it returned it.
        guard: The state of the guard.
    """

    weights: Mapping[str, Tensor]
    optimizers: Sequence[Mapping[str, Any]]
    guard: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints that a trainer writes.

    Args:
        newest: Returns the path of the newest, or an empty string.
        read: Opens one without reading its tensors.
    """

    newest: Callable[[], str]
    read: Callable[[str], Saved]


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A checkpoint that a run can go back to.

    Args:
        path: Where it is.
        stamp: Size and time of the file; with others it is another checkpoint.
        step: Optimizer steps made before it was written.
        extra: What the guard knew then.
        load: Opens it.
    """

    path: str
    stamp: tuple[int, int]
    step: int
    extra: dict[str, Any] = field(repr=False)
    load: Callable[[], Snapshot] = field(repr=False)

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot, read from the disk as it is used; None where the file is gone or another one."""
        try:
            return self.load() if stamp(self.path) == self.stamp else None
        except Exception:  # whatever a file that is no longer whole makes its reader raise
            return None


def stamp(path: str) -> tuple[int, int]:
    """Return size and time of a file."""
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns


class LastCheckpoint:
    """Find the newest good checkpoint of a run.

    Attributes:
        checkpoints: Those that a trainer writes, or None.
        index: The position of the optimizer in them.
        referred: One that a checkpoint refers to.
    """

    def __init__(self) -> None:
        self.checkpoints: Checkpoints | None = None
        self.index = 0
        self.referred = ""

    def find(
        self,
        known: Sequence[Snapshot | OnDisk],
        live: LiveState,
        collectives: Collectives,
    ) -> OnDisk | None:
        """Return it, or else one that is ``known``, if all processes see the same.

        Every process must call this at the same point.
        """
        names = {id(p): name for name, p in live.parameters.items()}
        order = [names.get(id(p), "") for group in live.optimizer.param_groups for p in group["params"]]
        found: OnDisk | None = None
        if (checkpoints := self.checkpoints) is not None:
            for path in (checkpoints.newest(), *(one.path for one in known if isinstance(one, OnDisk)), self.referred):
                # An unfinished file, one of another format, one that was written in an incident: whatever its reader
                # raises, it is none.
                with suppress(Exception):
                    load = partial(_load, checkpoints, path, self.index, order, list(live.buffers))
                    before, whole = stamp(path), load()
                    found = OnDisk(path, before, whole.step, whole.extra, load)
                    break
        seen = collectives.gather(None if found is None else (found.step, found.stamp[0]))
        return found if all(one is not None and one == seen[0] for one in seen) else None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: the trainer's checkpoints are the trainer's."""
        return {**vars(self), "checkpoints": None}


def _load(checkpoints: Checkpoints, path: str, index: int, order: Sequence[str], buffers: Sequence[str]) -> Snapshot:
    return _snapshot(checkpoints.read(path), index, order, buffers)


def _snapshot(saved: Saved, index: int, order: Sequence[str], buffers: Sequence[str]) -> Snapshot:
    """Return a checkpoint as a snapshot; raise ValueError if it is none to go back to."""
    one = saved.guard["lanes"][str(index)]
    if one["incident"] is not None or one["trial"]:
        raise ValueError("it was written in an incident")
    weights = {clean(name): value for name, value in saved.weights.items()}
    states, groups = saved.optimizers[index]["state"], saved.optimizers[index]["param_groups"]
    positions = [position for group in groups for position in group["params"]]
    held = {name: states[at] for name, at in zip(order, positions, strict=True) if at in states}
    return Snapshot(
        int(one["steps"]),
        {name: weights[name] for name in order},
        {name: weights[name] for name in buffers if name in weights},
        held,
        # It was written after that step, not before it.
        {**one["memory"], "number": one["memory"]["number"] + 1},
    )
