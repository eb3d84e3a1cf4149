"""What snapshots may take of the host's memory, and what is kept where they take more.

Linux grants memory that it does not have, and kills the process when it is used: what a snapshot needs is known before
it is made, so it is held against what is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_gradguard.statistics.sharding import sharded

UNKNOWN_STATE = 2
"""Times the parameters that an optimizer's state is taken to have before its first step: Adam's."""
ONE_MORE = 1
"""Copies beside those that are kept: the state from before a treatment that is on trial."""


class Keeping(IntEnum):
    """What is kept, from all to nothing."""

    ALL = 0
    ONE = 1
    """One snapshot in place of two."""
    NODE = 2
    """One for all processes of a host, which train the same weights."""
    LEAN = 3
    """One, without the optimizer's state: after a rollback that begins anew."""
    DISK = 4
    """None but the run's own last checkpoint."""
    NOTHING = 5

    @property
    def told(self) -> str:
        """What is done, for a warning."""
        return (
            "",
            "one is kept, not two",
            "one is kept for all processes of this host",
            "one is kept, without the optimizer's state, which a rollback then resets",
            "none is kept, and a rollback goes back to the run's last checkpoint on disk",
            "none is kept, and rollback is switched off",
        )[self]


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one snapshot of this process.

    Args:
        values: Of parameters and buffers.
        state: Of the optimizer's state.
    """

    values: int
    state: int

    def bytes(self, keeping: Keeping, keep: int) -> int:
        """Return what so many snapshots take, with the one that a treatment adds."""
        copies = (keep if keeping is Keeping.ALL else min(keep, 1)) + ONE_MORE
        one = self.values + (0 if keeping is Keeping.LEAN else self.state)
        return 0 if keeping >= Keeping.DISK or keep == 0 else copies * one

    @property
    def whole(self) -> int:
        """Bytes of one snapshot with all that belongs to it."""
        return self.values + self.state


def need(
    parameters: Iterable[Tensor], buffers: Iterable[Tensor], optimizer: torch.optim.Optimizer, *, pinned: int
) -> Need:
    """Return what one snapshot takes; of an optimizer that has not stepped what it is expected to.

    Args:
        parameters: The parameters; of a sharded one this process's shard counts.
        buffers: The buffers.
        optimizer: Their optimizer.
        pinned: Bytes of a tensor up to which its copy is pinned, and rounded up to a power of two by torch.
    """
    values = list(parameters)
    held = [taken(t, pinned) for t in state_tensors(optimizer.state.values())]
    weights = sum(taken(t, pinned) for t in values)
    expected = weights * UNKNOWN_STATE if not any(held) and optimizer_has_state(optimizer) else 0
    return Need(weights + sum(taken(t, pinned) for t in buffers), sum(held) or expected)


def state_tensors(entries: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
    """Yield the tensors in the state of parameters."""
    for entry in entries:
        for value in entry.values():
            if isinstance(value, Tensor):
                yield value  # Nearly all are, and a tree is dear to walk.
            else:
                yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def optimizer_has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer that has not stepped yet is to be expected to keep a state: all but plain SGD."""
    plain = isinstance(optimizer, torch.optim.SGD)
    return not plain or any(group.get("momentum") for group in optimizer.param_groups)


def taken(tensor: Tensor, pinned: int) -> int:
    """Return the bytes of host memory that a copy of a tensor takes."""
    mine: Any = tensor.to_local() if sharded(tensor) else tensor  # type: ignore[attr-defined]
    size = int(mine.numel() * mine.element_size())
    rounded = mine.is_cuda and 0 < size <= pinned
    return 1 << (size - 1).bit_length() if rounded else size


def left(root: Path = Path("/")) -> float:
    """Return the bytes of memory that this machine, or this process's container, has left; inf where nobody tells."""
    found = [math.inf]
    with suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(1024.0 * float(lines["MemAvailable"].split()[0]))
    groups = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # A group without a limit says "max", or a number that no machine has.
        with suppress(OSError, ValueError):
            found.append(float((groups / limit).read_text()) - float((groups / used).read_text()))
    return max(min(found), 0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the snapshots of this process may take.

    Args:
        available: Bytes that the host has left.
        processes: Processes on this host, each of which keeps as much.
        max_bytes: Most bytes of one process's snapshots; None for no bound but the share.
        max_share: Share of what the host has left that all its processes' snapshots may take.
    """

    available: float
    processes: int
    max_bytes: int | None
    max_share: float

    def most(self, keeping: Keeping) -> float:
        """Return the bytes that one process may take; where one keeps for all it may take what they may."""
        share = self.max_share * self.available / (1 if keeping is Keeping.NODE else max(self.processes, 1))
        return share if self.max_bytes is None else min(self.max_bytes, share)

    def allows(self, need: Need, keep: int) -> list[bool]:
        """Return of each way to keep snapshots whether there is room for it."""
        return [need.bytes(one, keep) <= self.most(one) for one in Keeping]

    def told(self, need: Need, keep: int, keeping: Keeping) -> str:
        """Return a warning of what is kept in place of all."""
        wanted, most = need.bytes(Keeping.ALL, keep), self.most(Keeping.ALL)
        return (
            f"snapshots would take {size(wanted)} of host memory a process where {size(most)} may be taken: "
            f"{keeping.told}"
        )


def fitting(allowed: Sequence[Sequence[bool]], possible: Collection[Keeping]) -> Keeping:
    """Return the most that may be kept alike by all processes.

    Args:
        allowed: What :meth:`Budget.allows` has told each of them.
        possible: What they can do at all.

    >>> fitting([[False, True, True, True, True, True]], {Keeping.ALL, Keeping.ONE, Keeping.NOTHING}).name
    'ONE'
    """
    return next(
        (one for one in Keeping if one in possible and all(mine[one] for mine in allowed)),
        Keeping.NOTHING,
    )


def size(number: float) -> str:
    """Return a number of bytes as people read it.

    >>> size(84e9), size(3.0)
    ('84.0 GB', '3 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"
