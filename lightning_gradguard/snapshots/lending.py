"""Memory of snapshots that were dropped, which the next one is written over, unless a checkpoint has it still."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_gradguard.snapshots.snapshot import Snapshot, plain


class Lending:
    """Know which snapshots a checkpoint was given, and may be on their way to the disk in another thread.

    A checkpoint gets tensors of its own, which share the memory: once they are gone it is written, and the memory is
    free.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[Snapshot, list[weakref.ref[Tensor]]]] = []

    def lend(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot for a checkpoint."""
        lent: dict[str, Any] = tree_map_only(Tensor, Tensor.detach, plain(snapshot))
        self._note(snapshot, lent)
        return lent

    def borrow(self, checkpoint: dict[str, Any]) -> Snapshot:
        """Return the snapshot that a checkpoint holds, in the checkpoint's own memory."""
        snapshot = Snapshot(**tree_map_only(Tensor, Tensor.detach, checkpoint))
        self._note(snapshot, checkpoint)
        return snapshot

    def free(self, dropped: Iterable[Snapshot]) -> Snapshot | None:
        """Return the last of the dropped snapshots whose memory may be written over."""
        self._lent = [(one, given) for one, given in self._lent if any(ref() is not None for ref in given)]
        lent = [id(one) for one, _ in self._lent]
        return next((one for one in reversed([*dropped]) if id(one) not in lent), None)

    def _note(self, snapshot: Snapshot, given: dict[str, Any]) -> None:
        self._lent.append((snapshot, [weakref.ref(t) for t in tree_leaves(given) if isinstance(t, Tensor)]))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: none of its snapshots is lent."""
        return {"_lent": []}
