"""Snapshots of parameters, buffers and optimizer state, for rollback and layer repair: which are kept.

One idea: which states there are to go back to. Its neighbours say how they are copied, and what they may take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import checks
from lightning_gradguard.snapshots import node
from lightning_gradguard.snapshots.budget import Budget, Keeping, left, need
from lightning_gradguard.snapshots.copier import PINNED, Copier
from lightning_gradguard.snapshots.lending import Lending
from lightning_gradguard.snapshots.on_disk import LastCheckpoint, OnDisk
from lightning_gradguard.snapshots.planning import agreed
from lightning_gradguard.snapshots.schedule import Schedule
from lightning_gradguard.snapshots.shards import parts
from lightning_gradguard.snapshots.snapshot import LiveState, Snapshot
from lightning_gradguard.statistics.collectives import Collectives

UNFORESEEN = 2**16
"""Bytes by which a snapshot may grow before it is held anew against what the host has left."""


class SnapshotStore:
    """Keep two snapshots: the newest, and an older one in case the newest was already sick.

    The first gaps are short, since a run is most often lost at its beginning: a snapshot is due at steps 0, 10, 20, 40,
    80 and so on until the gap reaches ``every``.

    Args:
        every: Steps between snapshots in a run that is under way.
        keep: Snapshots kept; each takes the memory of parameters, their buffers and optimizer state once. 0 switches
            them off.
        max_bytes: Most bytes of host memory that the snapshots of one process may take; None for no bound but the
            share.
        max_share: Share, at most 1, of the memory that the host has left before the first snapshot, which those of all
            its processes may take. What does not fit is made smaller, with a warning: one snapshot, one for all
            processes of a host, one without the optimizer's state, the run's own last checkpoint on disk, none.
        in_checkpoint: Whether a checkpoint holds the snapshots too, each as large as the checkpoint itself. Without
            them the checkpoint's own weights are the newest snapshot of the run that is resumed from it; one that is
            written in an incident carries the last good snapshot in any case.
    """

    def __init__(
        self,
        *,
        every: int = 100,
        keep: int = 2,
        max_bytes: int | None = None,
        max_share: float = 0.25,
        in_checkpoint: bool = False,
    ) -> None:
        self.every = checks.whole("every", every, least=1)
        self.keep = checks.whole("keep", keep)
        self.max_bytes = None if max_bytes is None else checks.whole("max_bytes", max_bytes)
        self.max_share = checks.number("max_share", max_share, above=0.0, most=1.0)
        self.in_checkpoint = checks.flag("in_checkpoint", in_checkpoint)
        # How much of the state is kept, and the bytes of a snapshot that this was decided for.
        self.keeping = Keeping.ALL
        self._planned = 0
        self._kept: list[Snapshot | OnDisk] = []
        self.schedule = Schedule(self.every)
        # Whether the first is kept, in place of the second newest.
        self.pinned = False
        self.disk = LastCheckpoint()
        self._copier = Copier()
        # Memory that the next copy is written over.
        self._spare: Snapshot | None = None
        self._lending = Lending()

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    def _nth(self, place: int) -> Snapshot | None:
        self._copier.arrive()
        found = self._kept[place] if -len(self._kept) <= place < len(self._kept) else None
        return found.snapshot() if isinstance(found, OnDisk) else found

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot, or None; waits for it to arrive."""
        return self._nth(-1)

    @property
    def older(self) -> Snapshot | None:
        """The snapshot before the newest, or None."""
        return self._nth(-2)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go back to."""
        return not self._kept

    @property
    def first(self) -> Snapshot | None:
        """The copy from before the first update, or None once it was dropped."""
        self._copier.arrive()
        return next((one for one in self._kept if isinstance(one, Snapshot) and one.updates == 0), None)

    @property
    def missing(self) -> bool:
        """Whether the checkpoint of a resumed run did not hold what there was to go back to; its weights stand in."""
        return self.keep > 0 and not self._kept and self.schedule.due > 0 and self.keeping is not Keeping.DISK

    def due(self, step: int, *, soon: bool = False) -> bool:
        """Return whether it is time for the next snapshot; ``soon``, in a trial, ten steps after the last one."""
        return self.keep > 0 and self.schedule.has_come(step, soon=soon)

    def plan(
        self,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        collectives: Collectives,
    ) -> str | None:
        """Hold what the next snapshot takes against what the host has left; keep less if need be, with a warning.

        Asked before each, and decided before the first, and anew where one takes more than was foreseen on any process:
        all decide alike, and at once, or one would wait for the others for ever.
        """
        wanted = need(parameters.values(), buffers.values(), optimizer, pinned=PINNED)
        if self.keep == 0 or not collectives.mean([float(wanted.whole > self._planned)]) > [0.0]:
            return None
        # With room for what could not be foreseen: counts of steps, and a buffer or two.
        self._planned = wanted.whole + wanted.whole // 4 + UNFORESEEN
        budget = Budget(left(), collectives.neighbours, self.max_bytes, self.max_share)
        live, on_disk = LiveState(parameters, buffers, optimizer), self.disk.checkpoints is not None
        level, told = agreed(wanted, self.keep, budget, live, collectives, on_disk=on_disk)
        if level <= self.keeping:
            return None
        self.keeping, self.keep = level, min(self.keep, 1)
        del self._kept[: -self.keep]
        self._spare = None
        if level is Keeping.NOTHING:
            self.switch_off()
        return told

    def take(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        """Copy the state as the newest snapshot, dropping what is beyond ``keep``; all processes must do so at once."""
        live = LiveState(parameters, buffers, optimizer)
        if not self.missing:  # What stands in for another moves no later one.
            self.schedule.took(step)
        if self.keeping is Keeping.DISK:
            found = self.disk.find(self._kept, live, collectives or Collectives())
            self._kept = [] if found is None else [found]
            return
        self._make_room(step)
        if (begun := self._copier.begun(step, live)) is None:
            self._kept.append(self.capture(step, *live, extra, collectives))
        else:
            changing = self._copier.copy(step, live._replace(parameters={}), extra, over=begun)
            self._kept.append(dataclasses.replace(begun, buffers=changing.buffers, extra=changing.extra))

    def capture(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
        collectives: Collectives | None = None,
    ) -> Snapshot:
        """Return a copy of the state that is not kept here; all processes must call this at the same point."""
        live = LiveState(parameters, buffers, optimizer)
        spare, self._spare = self._spare or self._copier.abandoned(), None
        if self.keeping is Keeping.NODE and collectives is not None:
            return node.take(step, live, extra, collectives, spare)
        return self._copier.copy(step, live, extra, lean=self.keeping is Keeping.LEAN, over=spare)

    def begin(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Begin the copy for a snapshot that may be taken at this step, beside the device's work on the batch."""
        if self._planned and self.keeping in (Keeping.ALL, Keeping.ONE, Keeping.LEAN):
            spare, self._spare = self._spare, None
            self._copier.begin(
                step, LiveState(parameters, {}, optimizer), lean=self.keeping is Keeping.LEAN, over=spare
            )

    def hurry(self, step: int) -> None:
        """Let the next snapshot be due at ``step``."""
        self.schedule.due = step

    def _make_room(self, step: int) -> None:
        """Drop what the next snapshot leaves no room for, to use its memory again unless a checkpoint has it still.

        The oldest goes before the new one is made, so that the bound on memory holds meanwhile as well. What a
        checkpoint was given is not written over until that is gone: it may be on its way to the disk in another thread.
        """
        same = self._kept[-1:] if self._kept and self._kept[-1].step == step else []
        older = self._kept[: len(self._kept) - len(same)]
        excess = max(len(older) + 1 - self.keep, 0)
        stay = int(self.pinned and self.keep > 1)
        dropped = older[stay : stay + excess] + same
        self._kept = older[:stay] + older[stay + excess :]
        self._spare = self._lending.free(one for one in dropped if isinstance(one, Snapshot))

    def discard_latest(self) -> None:
        """Drop the newest snapshot, because going back to it did not help; the last one stays."""
        if len(self._kept) > 1:
            self._kept.pop()

    def only_first(self) -> None:
        """Drop all but the oldest."""
        del self._kept[1:]

    def switch_off(self) -> None:
        """Drop all snapshots and take no more."""
        self.keep, self._kept = 0, []

    def state_dict(
        self, *, incident: bool = False, whole: Callable[[Snapshot], Snapshot | None] = lambda one: one
    ) -> dict[str, Any]:
        """Return what a resumed run must know, with snapshots if asked, and the last good one in an incident.

        Args:
            incident: Whether this is written in an incident.
            whole: Returns a snapshot as it can be read by other processes, or None where that cannot be had.
        """
        self._copier.arrive()
        held = [one for one in self._kept if isinstance(one, Snapshot)]
        carried = held if self.in_checkpoint else held[-1:] if incident else []
        kept = [self._lending.lend(found) for one in carried if (found := whole(one)) is not None]
        path = next((one.path for one in self._kept if isinstance(one, OnDisk)), self.disk.referred)
        dates = {"due": self.schedule.due, "taken": self.schedule.taken, "pinned": self.pinned}
        return dates | {"kept": kept, "on_disk": path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.schedule.due, self.schedule.taken = int(state["due"]), int(state["taken"])
        self.pinned = bool(state["pinned"])
        self._kept, self.disk.referred = [self._lending.borrow(kept) for kept in state["kept"]], str(state["on_disk"])

    def cut(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Cut snapshots that a checkpoint held whole to this process's part."""
        self._kept = [parts(one, parameters) if isinstance(one, Snapshot) else one for one in self._kept]
