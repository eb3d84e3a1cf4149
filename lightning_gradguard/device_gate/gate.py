"""Clip or skip a step on the device, which is not waited for; the host reads one step later what was done.

One idea: the gate only compares. The host knows the largest norm that may pass before the step, from what was accepted
so far. The device compares, and the norms travel to pinned memory behind the step's own work, to be read when the next
one is about to be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradguard.device_gate.bounds import Bounds, Judged
from lightning_gradguard.device_gate.reading import Flight, Reading
from lightning_gradguard.statistics.norms import gradient_norms, local

SAME_SIZE = {2: torch.int16, 4: torch.int32}
"""Integers by their bytes."""
_version = Tensor._version.__get__  # type: ignore[attr-defined]
DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32})
"""Gradients whose norms are taken in float32 by one call."""


class DeviceGate:
    """Judge one optimizer's gradients on their device.

    On a *fused* optimizer both answers are free: ``found_inf`` makes its kernel leave parameters and state alone, and
    ``grad_scale`` divides the gradients on the way. Other optimizers cannot be told from the device to do nothing.
    Their gradients are multiplied by one or zero, as integers, so that a NaN times zero is zero and a healthy gradient
    keeps every bit: the pass that a clip takes. A bad step is then one without a gradient: momentum and weight decay go
    on, where a step that the host skips touches nothing.

    A gradient that others clip afterwards is not clipped twice: with ``clips_follow`` they find one that is clipped
    already, and :meth:`settle` lowers what the optimizer divides by.

    Attributes:
        clips_follow: Whether somebody clips the gradients between the judgement and the update, in a place that nothing
            here sees.
    """

    def __init__(self) -> None:
        self.clips_follow = False
        self._told: _Told | None = None
        self._pinned: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._waiting: tuple[int, int] | None = None
        self._flight: Flight | None = None
        self._marked: torch.optim.Optimizer | None = None

    @staticmethod
    def fits(grads: Sequence[Tensor]) -> bool:
        """Return whether these gradients can be judged without the host: dense, of one device, of 16 or 32 bits."""
        first = grads[0].device if grads else None
        return first is not None and all(
            g.dtype in DTYPES and g.layout == torch.strided and g.device == first for g in grads
        )

    @torch.no_grad()
    def judge(
        self,
        optimizer: torch.optim.Optimizer,
        grads: list[Tensor],
        bounds: Bounds,
        *,
        act: bool,
        sharded: bool = False,
        scaled: bool = False,
        scale: Tensor | None = None,
    ) -> Judged:
        """Clip or skip the step that is about to be made; :meth:`send` then tells the host what was done.

        Args:
            optimizer: The optimizer that is about to step.
            grads: Its gradients.
            bounds: What passes, and what is clipped.
            act: False only measures.
            sharded: Whether some gradients are DTensors, whose norms are summed over their mesh: by the devices, so
                nobody waits.
            scaled: Whether a GradScaler owns the step; what is not finite it must find itself, and skip.
            scale: What the gradients are still multiplied by, where it has left that to a fused optimizer; one element.
        """
        norms = gradient_norms(grads, sharded=sharded)
        if scale is not None:
            norms = norms / scale.to(norms.device, non_blocking=True)
        # What a fused kernel is told would have to be a DTensor too, and a GradScaler tells it something else.
        fused = not (sharded or scaled) and _fused(optimizer, len(grads))
        total = torch.linalg.vector_norm(norms, dtype=torch.float64)
        coefficient, skip = bounds.compared(total, fused=fused)
        if not act:
            coefficient = torch.ones_like(coefficient)
        elif fused:
            self._mark(optimizer, grads, coefficient, skip, bounds.target)
        else:
            _multiply_bits(grads, ~(skip & total.isfinite()) if scaled else ~skip)
        return Judged(norms, coefficient)

    def _mark(
        self, optimizer: torch.optim.Optimizer, grads: list[Tensor], coefficient: Tensor, skip: Tensor, target: float
    ) -> None:
        factor = coefficient.masked_fill(skip, 1.0)
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        self._marked = optimizer
        if self.clips_follow:
            # A pass of its own, as every clip is: who clips next must find what the update is to be made of.
            torch._foreach_mul_(grads, factor.float())
            return
        optimizer.grad_scale = factor.reciprocal().float()  # type: ignore[attr-defined]
        self._told = _Told(grads, _writes(grads), factor < 1.0, target)

    @torch.no_grad()
    def settle(self) -> None:
        """Lower what a fused optimizer divides its gradients by, if others have clipped them since."""
        told = self._told
        if told is None or self._marked is None or _writes(told.grads) == told.writes:
            return
        # Measured anew, since nobody says what was done: one reading pass, and nothing is waited for.
        total = torch.linalg.vector_norm(gradient_norms(told.grads), dtype=torch.float64)
        left = (total / told.target).clamp_min(1.0).masked_fill(~told.clipped, 1.0)
        self._marked.grad_scale = left.float()  # type: ignore[attr-defined]
        told.writes = _writes(told.grads)

    @torch.no_grad()
    def send(
        self, judged: Judged, *, loss: Tensor | None = None, peaks: Sequence[Tensor] = (), flight: Flight | None = None
    ) -> None:
        """Send what was found and done at a step on its way to the host.

        Args:
            judged: What :meth:`judge` has returned.
            loss: The step's loss, one element.
            peaks: Largest absolute elements of the batch's tensors, one element each.
            flight: What the host knows of the step, to be read together with what the device finds.
        """
        norms, more = judged.norms, [judged.coefficient, *([] if loss is None else [loss]), *peaks]
        numbers = torch.stack([m.detach().to(norms.device, torch.float32, non_blocking=True).reshape(()) for m in more])
        packet = torch.cat([norms, numbers])
        pinned = self._event is not None or not packet.is_cuda
        if self._pinned is None or len(self._pinned) != len(packet) or not pinned:
            # Of the packet's dtype: a process may have another default, too narrow for a norm.
            self._pinned = torch.empty(len(packet), dtype=packet.dtype, pin_memory=packet.is_cuda)
            self._event = torch.cuda.Event() if packet.is_cuda else None  # type: ignore[no-untyped-call]
        self._pinned.copy_(packet, non_blocking=True)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(packet.device))
        self._waiting, self._flight = (len(norms), int(loss is not None)), flight

    def collect(self) -> Reading | None:
        """Return what was found at the last step that was judged here, once; None if there is none.

        In between the device was given a whole step to do. It has passed the point that is waited for long ago, or is
        still busy with what came before: in neither case does the wait leave it idle.
        """
        if self._waiting is None or self._pinned is None:
            return None
        (count, losses), self._waiting = self._waiting, None
        if self._event is not None:
            self._event.synchronize()
        values = self._pinned.numpy().astype(np.float64)
        rest = values[count:].tolist()
        loss = rest[1] if losses else None
        return Reading(values[:count], rest[0], loss, tuple(rest[1 + losses :]), self._flight)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: it has memory of its own, into which nothing is on its way."""
        if self._event is not None:
            self._event.synchronize()  # A guard is seldom copied in mid-run, so this may wait.
        return {**vars(self), "_event": None, "_told": None}

    @property
    def waiting(self) -> bool:
        """Whether a step was left to the device and has not been read yet."""
        return self._waiting is not None

    def after_update(self) -> None:
        """Take back what a fused optimizer was told, since it would do the same at the next step."""
        if self._marked is not None:
            for name in ("grad_scale", "found_inf"):
                vars(self._marked).pop(name, None)
            self._marked = self._told = None

    def drop(self) -> None:
        """Forget what has not been read."""
        self.after_update()
        self._waiting = None


@dataclass(slots=True)
class _Told:
    """What a fused optimizer was told of the gradients it will find, and how often they had been written to by then."""

    grads: list[Tensor]
    writes: int
    clipped: Tensor
    target: float


def _writes(grads: list[Tensor]) -> int:
    return sum(map(_version, grads))


def _fused(optimizer: torch.optim.Optimizer, count: int) -> bool:
    """Return whether the optimizer's kernel can be told to clip and to do nothing.

    A first step that SGD is told not to make would leave its momentum uninitialised, so every parameter must have some
    state.
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return bool(fused and all(g.get("fused") for g in optimizer.param_groups) and len(optimizer.state) >= count)


def _multiply_bits(grads: list[Tensor], factor: Tensor) -> None:
    by_size: dict[int, list[Tensor]] = {}
    for grad in grads:
        by_size.setdefault(grad.element_size(), []).append(local(grad).view(SAME_SIZE[grad.element_size()]))
    for size, words in by_size.items():
        torch._foreach_mul_(words, factor.to(SAME_SIZE[size]))
