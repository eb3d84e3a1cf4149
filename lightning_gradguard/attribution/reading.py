"""What one layer did to signal and gradient: its calls, measured on the device, and their reading on the host."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_gradguard.layers.names import Kind


@dataclass(frozen=True, slots=True)
class LayerReading:
    """What one layer did to the signal and to the gradient; the worst of its calls while the probe was armed.

    Args:
        layer: Qualified module name.
        kind: Kind of layer.
        order: Position of its first call in the order of execution.
        rms_in: RMS of its first floating-point input, None if it has none (an embedding).
        rms_out: RMS of its first floating-point output.
        forward_gain: ``rms_out / rms_in``; inf where finite became non-finite, None where it cannot be formed.
        backward_gain: ``||dL/dx_in|| / ||dL/dx_out||`` in L2 norms, through this layer only; None where not measured.
        grad_out: RMS of the gradient that reached its output, None where none did.
        input_finite: Whether the input was finite.
        output_finite: Whether the output was finite.
        grad_out_finite: Whether the gradient that reached its output was finite, None where none did.
        grad_in_finite: Whether the gradient that left its input was finite, None where none did.
        followed_by: Name of the normalisation that takes its output, None if there is none.
        ceiling: Largest finite number of the output's dtype.
        variation: RMS of the output's deviation from its mean over the batch, over its RMS; None where there is no
            batch.
        difference: The same over the units (features or channels) of a layer of four or more; None for others.
        largest_in: The largest ``rms_in`` of its calls.
        answers: The same as ``variation`` of the softmax of a linear layer's output, where it has two units or more.
        width: Size of the last dimension of its output.
        type: Type of a function; empty for a layer.
    """

    layer: str
    kind: Kind
    order: int
    rms_in: float | None
    rms_out: float | None
    forward_gain: float | None
    backward_gain: float | None
    grad_out: float | None
    input_finite: bool
    output_finite: bool
    grad_out_finite: bool | None
    grad_in_finite: bool | None
    followed_by: str | None
    ceiling: float
    variation: float | None = None
    difference: float | None = None
    largest_in: float | None = None
    answers: float | None = None
    width: int = 1
    type: str = ""

    @property
    def growth(self) -> float | None:
        """``rms_out / rms_in``, of an input of 1 at least: what makes 1 of 0 has not blown it up; None if unknown."""
        return _gain(self.rms_out, None if self.rms_in is None else max(self.rms_in, 1.0))


@dataclass(slots=True, eq=False)
class Call:
    """One forward call: 0-d tensors on the device until the step is over."""

    layer: str
    kind: Kind
    type: str = ""
    rms_in: Tensor | None = None
    rms_out: Tensor | None = None
    grads_out: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    grad_in: tuple[Tensor, int] | None = None
    varied: Tensor | None = None
    differed: Tensor | None = None
    answered: Tensor | None = None
    ceiling: float = torch.finfo(torch.float32).max
    width: int = 1


def tensors_of(call: Call) -> Iterator[Tensor]:
    """Yield what was measured of a call, for one transfer to the host."""
    ahead = call.rms_in, call.rms_out, call.varied, call.differed, call.answered
    for tensor in (*ahead, call.grad_in and call.grad_in[0]):
        if tensor is not None:
            yield tensor
    for tensor, _ in call.grads_out.values():
        yield tensor


def read(call: Call, order: int, followed_by: str | None, values: Iterator[float]) -> LayerReading:
    """Turn a call into a reading, taking its numbers from ``values`` in the order of :func:`tensors_of`."""
    rms_in = None if call.rms_in is None else next(values)
    rms_out = None if call.rms_out is None else next(values)
    varied = None if call.varied is None else next(values)
    differed = None if call.differed is None else next(values)
    answers = None if call.answered is None else next(values)
    grad_in = None if call.grad_in is None else (next(values), call.grad_in[1])
    grads_out = [(next(values), count) for _, count in call.grads_out.values()]
    total = math.hypot(*(value * math.sqrt(count) for value, count in grads_out)) if grads_out else None
    leaving = None if grad_in is None else grad_in[0] * math.sqrt(grad_in[1])
    return LayerReading(
        layer=call.layer,
        kind=call.kind,
        order=order,
        rms_in=rms_in,
        largest_in=rms_in,
        rms_out=rms_out,
        forward_gain=_gain(rms_out, rms_in),
        backward_gain=_gain(leaving, total),
        grad_out=None if total is None else total / math.sqrt(sum(count for _, count in grads_out)),
        input_finite=rms_in is None or math.isfinite(rms_in),
        output_finite=rms_out is None or math.isfinite(rms_out),
        grad_out_finite=None if total is None else math.isfinite(total),
        grad_in_finite=None if leaving is None else math.isfinite(leaving),
        followed_by=followed_by,
        ceiling=call.ceiling,
        variation=varied / rms_out if varied is not None and rms_out else None,
        difference=differed / rms_out if differed is not None and rms_out else None,
        answers=answers,
        width=call.width,
        type=call.type,
    )


def _gain(out: float | None, into: float | None) -> float | None:
    if out is None or into is None or not math.isfinite(into) or into == 0.0:
        return None
    return out / into if math.isfinite(out) else math.inf


def worst(calls: list[LayerReading]) -> LayerReading:
    """Join the calls of one layer: the forward half of the worst forward, the backward half of the worst backward."""
    ahead = max(calls, key=lambda r: (r.input_finite and not r.output_finite, r.forward_gain or 0.0))
    # One call's gradient that was finite says nothing of the weights where another call's was not when it came.
    back = max(
        calls,
        key=lambda r: (
            r.grad_out_finite is True and r.grad_in_finite is False,
            r.grad_out_finite is False,
            r.backward_gain or 0.0,
            r.grad_out is not None,
        ),
    )
    return replace(
        ahead,
        order=calls[0].order,
        backward_gain=back.backward_gain,
        grad_out=back.grad_out,
        grad_out_finite=back.grad_out_finite,
        grad_in_finite=back.grad_in_finite,
        # A layer whose output differs in one call is alive: in another call all samples may have been alike.
        variation=max((r.variation for r in calls if r.variation is not None), default=None),
        difference=max((r.difference for r in calls if r.difference is not None), default=None),
        answers=max((r.answers for r in calls if r.answers is not None), default=None),
        largest_in=max((r.rms_in for r in calls if r.rms_in is not None), default=None),
    )
