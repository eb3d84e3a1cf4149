"""Snapshots of parameters, buffers and optimizer state in host memory, for rollback and layer repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_gradguard import checks
from lightning_gradguard.statistics.sharding import comparable

PINNED = 2**30
"""Bytes of a tensor up to which its copy is pinned: what is pinned cannot be swapped, and its size is rounded up to a power of two."""
PATIENT = 3
"""Intervals after which a state is copied though the loss is worse than it was."""
EARLY = 10
"""Steps between the first snapshots; the gap then doubles with the age of the run."""


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
        """The step before which it was taken, as the record counts it; with several optimizers that is the trainer's."""
        return int(self.extra.get("number", self.step))


def _host(value: Any, used: Any = None) -> Any:
    """Return a copy in host memory, written over ``used`` where that fits: fresh memory costs as much as the copy."""
    if isinstance(value, Tensor):
        value = value.to_local() if hasattr(value, "to_local") else value
        # Asked of every tensor of the state, so by what costs least.
        fits = isinstance(used, Tensor) and used.dtype is value.dtype and used.is_same_size(value)
        if value.is_cpu:
            # .to("cpu") would alias the live tensor.
            return used.copy_(value) if fits else value.detach().clone()
        target = used if fits else _room(value)
        # Into pinned memory the device copies by itself, before the update that comes after.
        return target.copy_(value, non_blocking=value.is_cuda and target.is_pinned())
    # LBFGS keeps lists of tensors, which it changes in place.
    return tree_map_only(Tensor, _host, value)


def _room(value: Tensor) -> Tensor:
    """Return host memory for a copy, pinned where that is to be had and not too much."""
    if value.is_cuda and value.nbytes <= PINNED:
        with suppress(RuntimeError):
            return torch.empty_like(value, device="cpu", pin_memory=True)
    return torch.empty_like(value, device="cpu")


def _write(target: Tensor, source: Tensor) -> None:
    (target.to_local() if hasattr(target, "to_local") else target).copy_(source)


class SnapshotStore:
    """Keep two snapshots: the newest, and an older one in case the newest was already sick.

    The first gaps are short, since a run is most often lost at its beginning: a snapshot is due at steps 0, 10, 20, 40,
    80 and so on until the gap reaches ``every``.

    Args:
        every: Steps between snapshots in a run that is under way.
        keep: Snapshots kept; each takes the memory of parameters, their buffers and optimizer state once. 0 switches
            them off.
    """

    def __init__(self, *, every: int = 100, keep: int = 2) -> None:
        self.every = checks.whole("every", every, least=1)
        self.keep = checks.whole("keep", keep)
        self._kept: list[Snapshot] = []
        self._due = self._taken = 0
        # Steps of those that a checkpoint holds too.
        self._lent: set[int] = set()
        # Whether the first is kept, in place of the second newest.
        self.pinned = False
        # Set where the newest may still be on its way from the device.
        self._coming: list[torch.cuda.Event] = []

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
            if (held := optimizer.state.get(p)) is not None:
                used = old.optimizer_state.get(name, {})
                state[name] = {key: _host(value, used.get(key)) for key, value in held.items()}
        values = {name: _host(p, old.parameters.get(name)) for name, p in parameters.items()}
        kept = {name: _host(b, old.buffers.get(name)) for name, b in buffers.items()}
        for device in {p.device for p in parameters.values() if p.is_cuda}:
            with torch.cuda.device(device):
                self._coming.append(torch.cuda.current_stream().record_event())
        return Snapshot(step, values, kept, state, extra or {})

    def _arrive(self) -> None:
        while self._coming:
            self._coming.pop().synchronize()

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

    Learning rates and other ``param_groups`` entries are left alone: they belong to the schedulers, and restoring
    them would shift the recursive ones. A parameter that had no optimizer state then has none afterwards.
    """
    written = []
    for name, parameter in parameters.items():
        if name not in snapshot.parameters:
            continue
        _write(parameter, snapshot.parameters[name])
        restore_optimizer_state(optimizer, parameter, snapshot.optimizer_state.get(name))
        written.append(name)
    for name, buffer in buffers.items():
        if name in snapshot.buffers:
            _write(buffer, snapshot.buffers[name])
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
            # Step counts live on the host unless the optimizer is fused or capturable; the live one would tell.
            live[key] = value.to(parameter.device, copy=True) if value.dim() else value.clone()
        else:
            live[key] = tree_map_only(Tensor, lambda t: t.to(parameter.device, copy=True), value)
