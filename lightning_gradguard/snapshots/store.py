"""Snapshots of parameters, buffers and optimizer state in host memory, for rollback and layer repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_gradguard import checks
from lightning_gradguard.snapshots.budget import Keeping, fitting, left, need
from lightning_gradguard.snapshots.snapshot import PINNED, Snapshot, host_copy, plain
from lightning_gradguard.statistics.collectives import Collectives

UNFORESEEN = 2**16
"""Bytes by which a snapshot may grow before it is held anew against what the host has left."""
PATIENT = 3
"""Intervals after which a state is copied though the loss is worse than it was."""
EARLY = 10
"""Steps between the first snapshots; the gap then doubles with the age of the run."""


class SnapshotStore:
    """Keep two snapshots: the newest, and an older one in case the newest was already sick.

    The first gaps are short, since a run is most often lost at its beginning: a snapshot is due at steps 0, 10, 20, 40,
    80 and so on until the gap reaches ``every``.

    Args:
        every: Steps between snapshots in a run that is under way.
        keep: Snapshots kept; each takes the memory of parameters, their buffers and optimizer state once. 0 switches
            them off.
        max_bytes: Most bytes of host memory that the snapshots of one process may take; None for no bound but the share.
        max_share: Share of the memory that the host has left before the first snapshot, which those of all its processes may take.
            What does not fit is made smaller, with a warning: one snapshot, one without the optimizer's state, none.
    """

    def __init__(
        self, *, every: int = 100, keep: int = 2, max_bytes: int | None = None, max_share: float = 0.25
    ) -> None:
        self.every = checks.whole("every", every, least=1)
        self.keep = checks.whole("keep", keep)
        self.max_bytes = None if max_bytes is None else checks.whole("max_bytes", max_bytes)
        self.max_share = checks.number("max_share", max_share, above=0.0)
        # How much of the state is kept, and the bytes of a snapshot that this was decided for.
        self.keeping = Keeping.ALL
        self._planned = 0
        self._kept: list[Snapshot] = []
        self._due = self._taken = 0
        # Steps of those that a checkpoint holds too.
        self._lent: set[int] = set()
        # Whether the first is kept, in place of the second newest.
        self.pinned = False
        # Set where the newest may still be on its way from the device.
        self._coming: dict[tuple[torch.device, int], torch.cuda.Event] = {}

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot, or None; waits for it to arrive."""
        self._arrive()
        return self._kept[-1] if self._kept else None

    @property
    def older(self) -> Snapshot | None:
        """The snapshot before the newest, or None."""
        self._arrive()
        return self._kept[-2] if len(self._kept) > 1 else None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go back to."""
        return not self._kept

    @property
    def first(self) -> Snapshot | None:
        """The copy from before the first update, or None once it was dropped."""
        self._arrive()
        return next((snapshot for snapshot in self._kept if snapshot.updates == 0), None)

    def due(self, step: int, *, soon: bool = False) -> bool:
        """Tell whether it is time for the next snapshot; ``soon`` while a treatment is on trial: ten steps after the last one."""
        return self.keep > 0 and (step >= self._due or (soon and step >= self._taken + EARLY))

    def overdue(self, step: int) -> bool:
        """Tell whether the next snapshot has been due for several intervals."""
        return step >= self._due + PATIENT * self.every

    def plan(
        self,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        collectives: Collectives,
    ) -> str | None:
        """Hold what the next snapshot takes against what the host has left; keep less where it is too much, and return what to warn of.

        Asked before each, and decided before the first, and anew where one takes more than was foreseen; all processes decide alike.
        """
        wanted = need(parameters.values(), buffers.values(), optimizer, pinned=PINNED)
        if wanted.whole <= self._planned or self.keep == 0:
            return None
        # With room for what could not be foreseen: counts of steps, and a buffer or two.
        self._planned = wanted.whole + wanted.whole // 4 + UNFORESEEN
        mine, told = fitting(
            wanted,
            self.keep,
            available=left(),
            processes=collectives.neighbours,
            max_bytes=self.max_bytes,
            max_share=self.max_share,
        )
        level = mine
        if collectives.size > 1:
            # Of those that it does not fit alike, the one with the least room decides.
            levels = [Keeping.ONE, Keeping.LEAN, Keeping.NOTHING]
            short = collectives.mean([float(mine >= one) for one in levels])
            level = max(
                [one for one, share in zip(levels, short, strict=True) if not share <= 0.0], default=Keeping.ALL
            )
        if level <= self.keeping:
            return None
        self.keeping = level
        if level is Keeping.NOTHING:
            self.switch_off()
        else:
            self.keep = min(self.keep, 1)
            del self._kept[: -self.keep]
        return told if level is mine and told else f"another process has too little memory for snapshots: {level.told}"

    @torch.no_grad()
    def take(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Copy the state to host memory as the newest snapshot, dropping what is beyond ``keep``."""
        self._due, self._taken = step + min(max(step, EARLY), self.every), step
        taken = self.capture(step, parameters, buffers, optimizer, extra, over=self._make_room())
        self._kept.append(taken)

    @torch.no_grad()
    def capture(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
        *,
        over: Snapshot | None = None,
    ) -> Snapshot:
        """Return a copy of the state in host memory that is not kept here, written over the memory of ``over`` where that fits."""
        old = over or Snapshot(0, {}, {}, {})
        state: dict[str, dict[str, Any]] = {}
        for name, p in parameters.items():
            if (held := optimizer.state.get(p)) is not None and self.keeping is not Keeping.LEAN:
                used = old.optimizer_state.get(name, {})
                state[name] = {key: host_copy(value, used.get(key)) for key, value in held.items()}
        values = {name: host_copy(p, old.parameters.get(name)) for name, p in parameters.items()}
        kept = {name: host_copy(b, old.buffers.get(name)) for name, b in buffers.items()}
        read = [*parameters.values(), *buffers.values(), *(optimizer.state.get(p) for p in parameters.values())]
        for device in {t.device for t in tree_leaves(read) if isinstance(t, Tensor) and t.is_cuda}:
            # One event a stream, behind all that it has been told: the next one stands for those before it too.
            stream = torch.cuda.current_stream(device)
            self._coming[device, stream.cuda_stream] = stream.record_event()
        return Snapshot(step, values, kept, state, extra or {})

    def _arrive(self) -> None:
        while self._coming:
            self._coming.popitem()[1].synchronize()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: nothing is on its way into the memory that it has."""
        self._arrive()
        return vars(self)

    def _make_room(self) -> Snapshot:
        """Drop what the next snapshot leaves no room for, and return it, so that its memory may be used again.

        The oldest goes before the new one is made, so that the bound on memory holds meanwhile as well. What a checkpoint was
        given is never written over: it may be on its way to the disk in another thread.
        """
        excess = max(len(self._kept) + 1 - self.keep, 0)
        stay = int(self.pinned and self.keep > 1)
        dropped = self._kept[stay : stay + excess]
        self._kept = self._kept[:stay] + self._kept[stay + excess :]
        free = [s for s in dropped if s.step not in self._lent]
        self._lent &= {s.step for s in self._kept}
        return free[-1] if free else Snapshot(0, {}, {}, {})

    def discard_latest(self) -> None:
        """Drop the newest snapshot, because going back to it did not help; the last one stays."""
        if len(self._kept) > 1:
            self._kept.pop()

    def only_first(self) -> None:
        """Drop all but the oldest."""
        del self._kept[1:]

    def switch_off(self) -> None:
        """Drop all snapshots and take no more."""
        self.keep = 0
        self._kept.clear()

    def hurry(self, step: int) -> None:
        """Let the next snapshot be due at ``step``."""
        self._due = step

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshots themselves: a resumed run must be able to go back to where this one would."""
        self._arrive()
        self._lent = {s.step for s in self._kept}
        kept = [plain(s) for s in self._kept]
        return {"due": self._due, "taken": self._taken, "pinned": self.pinned, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._due, self._taken, self.pinned = int(state["due"]), int(state["taken"]), bool(state["pinned"])
        self._kept = [Snapshot(**kept) for kept in state["kept"]]
        self._lent = {s.step for s in self._kept}
