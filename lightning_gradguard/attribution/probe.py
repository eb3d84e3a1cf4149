"""A probe of what each layer does to the signal and to the gradient, armed for one step on suspicion."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.attribution.magnitude import rms, to_host
from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.layers.names import Kind, clean, compiled, kind_of, layers

WILD = 10.0
"""RMS, up or down, of inputs and outputs that an initialisation is not made for: standardised ones have 1."""
UNITS = 4
"""Units from which a layer's are expected to differ."""
ALIKE = 0.01
"""Deviation of a batch's outputs over their RMS below which the signal dies on its way."""


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
        variation: RMS of the output's deviation from its mean over the batch, over its RMS; None where there is no batch.
        largest_in: The largest ``rms_in`` of its calls.
        difference: The same over the units (features or channels) of a layer of four or more; None for others.
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


def can_leave_graphs() -> bool:
    """Return whether this torch can be asked to run compiled code in eager mode."""
    return hasattr(torch.compiler, "set_stance")


@dataclass(slots=True, eq=False)
class _Call:
    """One forward call: 0-d tensors on the device until the step is over."""

    layer: str
    kind: Kind
    rms_in: Tensor | None = None
    rms_out: Tensor | None = None
    grads_out: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    grad_in: tuple[Tensor, int] | None = None
    varied: Tensor | None = None
    differed: Tensor | None = None
    ceiling: float = torch.finfo(torch.float32).max


class Probe:
    """Measure forward and backward gains of every layer, between :meth:`arm` and :meth:`disarm`.

    Tensor hooks are used, not full backward hooks: those wrap outputs in a view that an in-place ReLU may not change.
    The input is replaced by a view of itself, so that the gradient seen there came through this layer alone although other
    branches read the same tensor. Neither changes a number.

    Hooks never fire inside a compiled graph, so a module of which a part is compiled runs in eager mode while the probe is armed, where
    torch (2.6 or later) can be asked for that. Rounding differs there, so a healthy run must be spared it.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> probe = Probe()
        >>> probe.arm(model)
        >>> model(torch.randn(4, 8)).sum().backward()
        >>> probe.disarm()
        >>> [reading.layer for reading in probe.readings()]
        ['0', '2']
    """

    def __init__(self) -> None:
        self._backward = True
        self._handles: list[RemovableHandle] = []
        self._calls: list[_Call] = []
        self._open: dict[nn.Module, list[_Call]] = {}
        self._names: dict[nn.Module, tuple[str, Kind]] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        self._followed: dict[str, str] = {}
        self._stance: Any = None
        # Whether the readings were made outside a compiled graph.
        self.outside = False

    @property
    def armed(self) -> str:
        """``"full"`` or ``"forward"`` while hooks are in place, empty otherwise."""
        return ("full" if self._backward else "forward") if self._handles else ""

    def arm(self, module: nn.Module, *, backward: bool = True) -> None:
        """Forget earlier readings and hook every layer of ``module``.

        Args:
            module: The root module.
            backward: Whether to measure backward gains too. For these each layer reads its input through a view, so that
                where a tensor is read by several, the order changes in which their gradients are summed: by a
                rounding error, which a healthy run must be spared.
        """
        self.disarm()
        self._backward = backward
        self._calls, self._followed = [], {}
        self.outside = compiled(module) and can_leave_graphs()
        if self.outside:
            self._stance = torch.compiler.set_stance("force_eager")  # in effect from here on
        for name, layer in _targets(module):
            self._names[layer] = (name, kind_of(layer))
            self._handles.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after))

    def disarm(self) -> None:
        """Remove all hooks; the readings stay."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        for handle in self._handles:
            handle.remove()
        self._handles, self._open, self._names, self._made = [], {}, {}, {}

    def readings(self) -> tuple[LayerReading, ...]:
        """Bring the measurements to the host in one transfer; one reading a layer, in the order of execution."""
        tensors = [t for call in self._calls for t in _tensors(call)]
        values = iter(to_host(tensors))
        grouped: dict[str, list[LayerReading]] = {}
        for call in self._calls:
            known = grouped.setdefault(call.layer, [])
            order = known[0].order if known else len(grouped) - 1
            known.append(_read(call, order, self._followed.get(call.layer), values))
        return tuple(_worst(calls) for calls in grouped.values())

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Validation may come in between: it says nothing of the gradients, and may last for thousands of batches.
        if torch.compiler.is_compiling() or layer not in self._names or not torch.is_grad_enabled():
            return None
        call = _Call(*self._names[layer])
        self._open.setdefault(layer, []).append(call)
        values = (*args, *kwargs.values())
        source = next((v for v in values if _measurable(v)), None)
        if source is None:
            return None
        call.rms_in = _size(source)
        if call.kind == "norm" and (maker := self._maker(source)) is not None:
            self._followed[maker] = call.layer
        if not (self._backward and torch.is_grad_enabled() and source.requires_grad):
            return None
        alias = source.view_as(source)
        alias.register_hook(lambda grad: _note_grad_in(call, grad))
        # Attention takes a faster path where query *is* key: every mention must become the same alias.
        swap = {id(source): alias}
        return tuple(swap.get(id(v), v) for v in args), {k: swap.get(id(v), v) for k, v in kwargs.items()}

    def _after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not self._open.get(layer):
            return
        call = self._open[layer].pop()
        outputs = [v for v in _flatten(output) if _measurable(v)]
        if not outputs:
            return
        call.rms_out, call.ceiling = _size(outputs[0]), torch.finfo(outputs[0].dtype).max
        if outputs[0].dim() > 1 and len(outputs[0]) > 1:
            call.varied = _size(outputs[0].detach() - outputs[0].detach().mean(0))
            axis = 1 if call.kind == "conv" else -1
            if call.kind in ("linear", "conv") and outputs[0].shape[axis] >= UNITS:
                call.differed = _size(outputs[0].detach() - outputs[0].detach().mean(axis, keepdim=True))
        self._calls.append(call)
        base = _base(outputs[0])
        self._made[id(base)] = (weakref.ref(base), outputs[0].numel(), call.layer)
        for index, tensor in enumerate(outputs):
            if tensor.requires_grad:
                tensor.register_hook(lambda grad, index=index: _note_grad_out(call, index, grad))

    def _maker(self, source: Tensor) -> str | None:
        """Return the layer whose output (or a reshaped view of all of it) ``source`` is."""
        base = _base(source)
        reference, count, layer = self._made.get(id(base), (None, 0, ""))
        # A freed tensor's id is used again, so the weak reference decides.
        return layer if reference is not None and reference() is base and count == source.numel() else None


def _targets(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield layers that do one thing: those that own parameters and hold no other layer, and every normalisation."""
    owners = layers(module)
    seen = set[nn.Module]()
    for name, child in module.named_modules():
        name, kind = clean(name), kind_of(child)
        holds = kind == "other" and any(
            other.startswith(f"{name}." if name else "") for other in owners if other != name
        )
        if child in seen or holds or isinstance(child, torch.jit.ScriptModule):
            continue
        tied = any(True for _ in child.parameters(recurse=False))  # a tied weight has one owner but several users
        if name in owners or tied or kind == "norm":
            seen.add(child)
            yield name, child


def _measurable(value: Any) -> bool:
    return (
        type(value) in (Tensor, nn.Parameter)
        and (value.is_floating_point() or value.is_complex())
        and value.layout == torch.strided
        and not value.is_meta
        and value.numel() > 0
        # Inside vmap or torch.func.grad a tensor must not outlive its transform.
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, dict):
        yield from _flatten(list(value.values()))
    else:
        yield value


def _note_grad_in(call: _Call, grad: Tensor) -> None:
    if _measurable(grad) and (size := _size(grad)) is not None:
        call.grad_in = (size, grad.numel())


def _note_grad_out(call: _Call, index: int, grad: Tensor) -> None:
    if _measurable(grad) and (size := _size(grad)) is not None:
        call.grads_out[index] = (size, grad.numel())


def _size(tensor: Tensor) -> Tensor | None:
    """Return the RMS, or None where there is no memory to measure it: the user's own pass must not fail by that."""
    try:
        return rms(tensor)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None


def _tensors(call: _Call) -> Iterator[Tensor]:
    for tensor in (call.rms_in, call.rms_out, call.varied, call.differed, call.grad_in and call.grad_in[0]):
        if tensor is not None:
            yield tensor
    for tensor, _ in call.grads_out.values():
        yield tensor


def _read(call: _Call, order: int, followed_by: str | None, values: Iterator[float]) -> LayerReading:
    """Turn a call into a reading, taking its numbers from ``values`` in the order of :func:`_tensors`."""
    rms_in = None if call.rms_in is None else next(values)
    rms_out = None if call.rms_out is None else next(values)
    varied = None if call.varied is None else next(values)
    differed = None if call.differed is None else next(values)
    grad_in = None if call.grad_in is None else (next(values), call.grad_in[1])
    grads_out = [(next(values), count) for _, count in call.grads_out.values()]
    total = math.hypot(*(value * math.sqrt(count) for value, count in grads_out)) if grads_out else None
    leaving = None if grad_in is None else grad_in[0] * math.sqrt(grad_in[1])
    return LayerReading(
        layer=call.layer,
        kind=call.kind,
        order=order,
        rms_in=rms_in,
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
    )


@dataclass(frozen=True, slots=True)
class Signal:
    """What becomes of a batch on its way through the network.

    Args:
        source: RMS of the first input.
        growth: Largest RMS of a layer's output over ``source``, or over 1 if that is larger; what a normalisation takes in does not count.
        variation: :attr:`LayerReading.variation` of the last layer, or the least :attr:`LayerReading.difference` if that is less: units
            that are all alike are one unit; None where both are unknown, or where the samples are alike to the first layer already.
    """

    source: float
    growth: float
    variation: float | None

    @property
    def sound(self) -> bool:
        """Whether it is what an initialisation should make of it: of the order of 1, and different from sample to sample."""
        return (
            1.0 / WILD <= self.source <= WILD
            and self.growth <= WILD
            and (self.variation is None or self.variation >= ALIKE)
        )


def signal(readings: tuple[LayerReading, ...]) -> Signal:
    """Return what became of the batch that the readings are of."""
    ahead = [r for r in readings if r.rms_out is not None and r.followed_by is None]
    # An embedding takes no signal in, and should give one of the order of 1.
    source = 1.0 if not readings or readings[0].largest_in is None else readings[0].largest_in
    largest = max(
        (r.rms_out if math.isfinite(r.rms_out) else math.inf for r in ahead if r.rms_out is not None), default=1.0
    )
    varied = [r.variation for r in readings if r.variation is not None]
    told = varied[-1:] if varied and varied[0] >= ALIKE else []
    told += [r.difference for r in readings if r.difference is not None]
    return Signal(source, largest / max(source, 1.0) if math.isfinite(source) else 1.0, min(told, default=None))


def _gain(out: float | None, into: float | None) -> float | None:
    if out is None or into is None or not math.isfinite(into) or into == 0.0:
        return None
    return out / into if math.isfinite(out) else math.inf


def _worst(calls: list[LayerReading]) -> LayerReading:
    """Join the calls of one layer: the forward half of the worst forward call, the backward half of the worst backward."""
    ahead = max(calls, key=lambda r: (r.input_finite and not r.output_finite, r.forward_gain or 0.0))
    back = max(calls, key=lambda r: (r.backward_gain or 0.0, r.grad_out is not None))
    return LayerReading(
        layer=ahead.layer,
        kind=ahead.kind,
        order=calls[0].order,
        rms_in=ahead.rms_in,
        rms_out=ahead.rms_out,
        forward_gain=ahead.forward_gain,
        backward_gain=back.backward_gain,
        grad_out=back.grad_out,
        input_finite=ahead.input_finite,
        output_finite=ahead.output_finite,
        grad_out_finite=back.grad_out_finite,
        grad_in_finite=back.grad_in_finite,
        followed_by=ahead.followed_by,
        ceiling=ahead.ceiling,
        # What differs in one of its calls is alive: in another all samples may have been alike.
        variation=max((r.variation for r in calls if r.variation is not None), default=None),
        difference=max((r.difference for r in calls if r.difference is not None), default=None),
        largest_in=max((r.rms_in for r in calls if r.rms_in is not None), default=None),
    )
