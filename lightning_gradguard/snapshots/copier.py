"""Copying a state to host memory; from a GPU beside its work, which waits only before the update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_gradguard.snapshots.budget import state_tensors
from lightning_gradguard.snapshots.snapshot import LiveState, Snapshot

PINNED = 2**30
"""Bytes of a tensor up to which its copy is pinned: that cannot be swapped, and is rounded up to a power of two."""
_version = Tensor._version.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A copy that was begun with the batch: of which step, and of what, as it was then."""

    step: int
    copied: Snapshot
    marks: list[tuple[int, int]]


class Copier:
    """Copy parameters, buffers and the state of an optimizer to host memory.

    A GPU copies them into pinned memory by itself. Where the copy can begin with the batch it runs on a
    stream of its own beside the forward and backward pass, and only the stream of the update waits for it. Buffers
    change in a forward pass, and are copied once that is over.
    """

    def __init__(self) -> None:
        # Set where a copy may still be on its way from the device; one event a stream stands for all before it.
        self._coming: dict[tuple[torch.device, int], torch.cuda.Event] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._ahead: _Ahead | None = None

    @torch.no_grad()
    def copy(
        self,
        step: int,
        live: LiveState,
        extra: dict[str, Any] | None = None,
        *,
        lean: bool = False,
        over: Snapshot | None = None,
    ) -> Snapshot:
        """Return a copy, written over ``over`` where that fits; ``lean`` leaves the optimizer's state out."""
        parameters, buffers, optimizer = live
        old = over or Snapshot(0, {}, {}, {})
        held = {} if lean else {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
        state = {name: _entry(entry, old.optimizer_state.get(name, {})) for name, entry in held.items()}
        values = {name: host_copy(p, old.parameters.get(name)) for name, p in parameters.items()}
        kept = {name: host_copy(b, old.buffers.get(name)) for name, b in buffers.items()}
        for device in _devices(live):
            self._mark(torch.cuda.current_stream(device), device)
        return Snapshot(step, values, kept, state, extra or {})

    def begin(self, step: int, live: LiveState, *, lean: bool, over: Snapshot | None) -> None:
        """Begin to copy parameters and state beside the device's work, for a snapshot that may be wanted."""
        if self._ahead is not None and self._ahead.step == step:
            return  # A later part of the same step's batch.
        over = over or self.abandoned()
        devices = _devices(live)
        self._streams |= {
            device: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for device in devices - set(self._streams)
        }
        with contextlib.ExitStack() as beside:
            for device in devices:
                # Behind the last update, which made what is copied.
                self._streams[device].wait_stream(torch.cuda.current_stream(device))
                beside.enter_context(torch.cuda.stream(self._streams[device]))
            copied = self.copy(step, live, lean=lean, over=over)
        # The buffers' memory is kept for them: they are copied later.
        copied.buffers.update({} if over is None else over.buffers)
        self._ahead = _Ahead(step, copied, _marks(live))

    def begun(self, step: int, live: LiveState) -> Snapshot | None:
        """Return what was begun for this step, and let the update wait; None also where somebody has written since."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.step != step or ahead.marks != _marks(live):
            return None
        self._wait()
        return ahead.copied

    def abandoned(self) -> Snapshot | None:
        """Return the memory of a copy that was begun and not wanted, once."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        self._wait()
        return ahead.copied

    def _wait(self) -> None:
        """Let what the devices do next wait for the copy."""
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def arrive(self) -> None:
        """Wait for all that is on its way."""
        while self._coming:
            self._coming.popitem()[1].synchronize()

    def _mark(self, stream: torch.cuda.Stream, device: torch.device) -> None:
        self._coming[device, stream.cuda_stream] = stream.record_event()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: nothing is on its way into its memory."""
        self.arrive()
        return {"_coming": {}, "_streams": {}, "_ahead": None}


def host_copy(value: Any, used: Any = None) -> Any:
    """Return a copy in host memory, written over ``used`` where that fits: fresh memory costs as much as the copy."""
    if isinstance(value, Tensor):
        value = value.to_local() if hasattr(value, "to_local") else value
        # Asked of every tensor of the state, so by what costs least.
        fits = isinstance(used, Tensor) and used.dtype is value.dtype and used.is_same_size(value)
        if value.is_cpu:
            # .to("cpu") would alias the live tensor.
            return used.copy_(value) if fits else value.detach().clone()
        # One from a checkpoint, or from a copy of the guard, is not pinned, and each copy into it would be waited for.
        target = used if fits and (used.is_pinned() or not _pinnable(value)) else _room(value)
        # Into pinned memory the device copies by itself, before the update that comes after.
        return target.copy_(value, non_blocking=value.is_cuda and target.is_pinned())
    # LBFGS keeps lists of tensors, which it changes in place.
    return tree_map_only(Tensor, host_copy, value)


def _entry(held: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    return {key: host_copy(value, used.get(key)) for key, value in held.items()}


def _room(value: Tensor) -> Tensor:
    """Return host memory for a copy, pinned where that is to be had and not too much."""
    if _pinnable(value):
        with suppress(RuntimeError):
            return torch.empty_like(value, device="cpu", pin_memory=True)
    return torch.empty_like(value, device="cpu")


def _pinnable(value: Tensor) -> bool:
    return value.is_cuda and value.nbytes <= PINNED


def _tensors(live: LiveState) -> list[Tensor]:
    parameters, state = live.parameters.values(), live.optimizer.state
    return [*parameters, *state_tensors(state[p] for p in parameters if p in state)]


def _marks(live: LiveState) -> list[tuple[int, int]]:
    """Return which tensors there are, and how often each has been written to."""
    return [(id(t), _version(t)) for t in _tensors(live)]


def _devices(live: LiveState) -> set[torch.device]:
    # An optimizer keeps its state where its parameter is, or in host memory.
    return {t.device for t in [*live.parameters.values(), *live.buffers.values()] if t.is_cuda}
