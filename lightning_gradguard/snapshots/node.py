"""One copy of a state for all processes of a host, in memory that all of them see.

Under DDP all of them train the same weights, so that eight copies hold the same eight times. The first process of the
host makes the copy; going back needs no word between them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.snapshots.copier import host_copy
from lightning_gradguard.snapshots.snapshot import LiveState, Snapshot
from lightning_gradguard.statistics.collectives import Collectives

ALIGNED = 64
"""Bytes at a multiple of which each tensor begins."""
Where = tuple[str, str]
"""The name of a parameter, and the key of an entry of its optimizer's state; none for the parameter itself."""


@dataclass(frozen=True, slots=True)
class _Slot:
    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


Layout = dict[Where, _Slot]


def can_share() -> bool:
    """Return whether this system lets processes see one another's memory: Linux does."""
    return hasattr(os, "memfd_create")


def layout(live: LiveState) -> Layout:
    """Return where each tensor of the state lies in the memory that is shared."""
    found: Layout = {}
    start = 0
    for where, value in _tensors(live):
        found[where] = _Slot(start, value.nbytes, value.dtype, tuple(value.shape))
        start += -(-value.nbytes // ALIGNED) * ALIGNED
    return found


def _tensors(live: LiveState) -> Iterator[tuple[Where, Tensor]]:
    for name, p in live.parameters.items():
        yield (name, ""), p
        for key, value in live.optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                yield (name, key), value


@torch.no_grad()
def take(
    step: int, live: LiveState, extra: dict[str, Any] | None, collectives: Collectives, over: Snapshot | None
) -> Snapshot:
    """Return a snapshot whose tensors all processes of a host share; buffers, which may differ, are each one's own.

    Every process must call this at the same point. The others may read it once all have come to a later one.

    Raises:
        MemoryError: There is no such memory to be had on some host; on all processes alike.
    """
    parameters, buffers, optimizer = live
    slots = layout(live)
    views = None if over is None else {where: _part(over, where) for where in slots}
    fits = views is not None and all(_fits(views[where], slot) for where, slot in slots.items())
    # Nobody writes to it before all have come here: until then they may be reading it.
    if collectives.mean([float(not fits)]) > [0.0]:
        room = _room(max((slot.start + slot.size for slot in slots.values()), default=0), collectives)
        views = {where: _view(room, slot) for where, slot in slots.items()}
    assert views is not None
    if _first(collectives):
        for where, value in _tensors(live):
            views[where].copy_(value)
    state = {
        name: {
            key: views[name, key] if isinstance(value, Tensor) else host_copy(value)
            for key, value in optimizer.state[p].items()
        }
        for name, p in parameters.items()
        if p in optimizer.state
    }
    kept = {name: host_copy(b) for name, b in buffers.items()}
    return Snapshot(step, {name: views[name, ""] for name in parameters}, kept, state, extra or {})


def _first(collectives: Collectives) -> bool:
    """Return whether this is the first process of its host."""
    return collectives.rank % collectives.neighbours == 0


def _part(snapshot: Snapshot, where: Where) -> Any:
    name, key = where
    return snapshot.optimizer_state.get(name, {}).get(key) if key else snapshot.parameters.get(name)


def _fits(used: Any, slot: _Slot) -> bool:
    return isinstance(used, Tensor) and used.dtype is slot.dtype and tuple(used.shape) == slot.shape


def _room(size: int, collectives: Collectives) -> Tensor:
    """Return bytes that all processes of a host share, or raise MemoryError on all."""
    made = -1
    if _first(collectives):
        with suppress(OSError):
            # It has no name and no place on a disk, and is gone with the last process that sees it.
            made = os.memfd_create("gradguard")
            os.ftruncate(made, max(size, 1))
    holders = collectives.gather((os.getpid(), made))
    process, number = holders[collectives.rank - collectives.rank % collectives.neighbours]
    found: mmap.mmap | None = None
    with suppress(OSError, ValueError):
        opened = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
        try:
            found = mmap.mmap(opened, max(size, 1))
        finally:
            os.close(opened)
    # The memory itself stays as long as it is seen; its number is needed until all have found it.
    failed = collectives.mean([float(found is None)]) > [0.0]
    if made >= 0:
        os.close(made)
    if failed or found is None:
        raise MemoryError("no memory that the processes of this host could share")
    return torch.frombuffer(found, dtype=torch.uint8)


def _view(room: Tensor, slot: _Slot) -> Tensor:
    return room[slot.start : slot.start + slot.size].view(slot.dtype).view(slot.shape)
