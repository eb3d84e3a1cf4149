"""A probe of what each layer does to signal and gradient. One idea: its hooks, armed for one step on suspicion."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.attribution.magnitude import rms, to_host
from lightning_gradguard.attribution.reading import Call, LayerReading, read, tensors_of, worst
from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.layers.names import Kind, clean, compiled, kind_of, layers

UNITS = 4
"""Units from which a layer's are expected to differ."""


def can_leave_graphs() -> bool:
    """Return whether this torch can be asked to run compiled code in eager mode."""
    return hasattr(torch.compiler, "set_stance")


class Probe:
    """Measure forward and backward gains of every layer, between :meth:`arm` and :meth:`disarm`.

    Tensor hooks are used, not full backward hooks: those wrap outputs in a view that an in-place ReLU may not change.
    The input is replaced by a view of itself, so that the gradient seen there came through this layer alone although
    other branches read the same tensor. Neither changes a number.

    Hooks never fire inside a compiled graph, so a module of which a part is compiled runs in eager mode while the probe
    is armed, where torch (2.6 or later) can be asked for that. Rounding differs there, so a healthy run must be spared
    it.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> probe = Probe()
        >>> probe.arm(model)
        >>> model(torch.randn(4, 8)).sum().backward()
        >>> probe.disarm()
        >>> [reading.layer for reading in probe.readings()]
        ['0', '1', '2']
    """

    def __init__(self) -> None:
        self._backward = True
        self._handles: list[RemovableHandle] = []
        self._calls: list[Call] = []
        self._open: dict[nn.Module, list[Call]] = {}
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
            backward: Whether to measure backward gains too. For these each layer reads its input through a view, so
                that where a tensor is read by several, the order changes in which their gradients are summed: by a
                rounding error, which a healthy run must be spared.
        """
        self.disarm()
        self._backward = backward
        self._calls, self._followed = [], {}
        self.outside = compiled(module) and can_leave_graphs()
        if self.outside:
            self._stance = torch.compiler.set_stance("force_eager")  # in effect from here on
        for name, kind, layer in _targets(module):
            self._names[layer] = (name, kind)
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
        tensors = [t for call in self._calls for t in tensors_of(call)]
        values = iter(to_host(tensors))
        grouped: dict[str, list[LayerReading]] = {}
        for call in self._calls:
            known = grouped.setdefault(call.layer, [])
            order = known[0].order if known else len(grouped) - 1
            known.append(read(call, order, self._followed.get(call.layer), values))
        return tuple(worst(calls) for calls in grouped.values())

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Validation may come in between: it says nothing of the gradients, and may last for thousands of batches.
        if torch.compiler.is_compiling() or layer not in self._names or not torch.is_grad_enabled():
            return None
        name, kind = self._names[layer]
        call = Call(name, kind, type(layer).__name__ if kind == "function" else "")
        self._open.setdefault(layer, []).append(call)
        values = (*args, *kwargs.values())
        source = next((v for v in values if _measurable(v)), None)
        if source is None:
            return None
        call.rms_in = _size(source)
        if call.kind == "norm" and (maker := self._maker(source)) is not None:
            self._followed[maker] = call.layer
        if not (self._backward and source.requires_grad) or call.kind == "function":
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
        call.width = outputs[0].shape[-1] if outputs[0].dim() else 1
        self._calls.append(call)
        if call.kind == "function":
            return
        if outputs[0].dim() > 1 and len(outputs[0]) > 1:
            call.varied = _size(outputs[0].detach() - outputs[0].detach().mean(0))
            axis = 1 if call.kind == "conv" else -1
            if call.kind in ("linear", "conv") and outputs[0].shape[axis] >= UNITS:
                call.differed = _size(outputs[0].detach() - outputs[0].detach().mean(axis, keepdim=True))
            if call.kind == "linear" and outputs[0].shape[-1] > 1:
                call.answered = _answers(outputs[0].detach())
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


def _targets(module: nn.Module) -> Iterator[tuple[str, Kind, nn.Module]]:
    """Yield layers that own parameters and hold no other layer, every normalisation, and functions."""
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
            yield name, kind, child
        elif child is not module and not any(True for _ in child.children()):
            seen.add(child)
            yield name, "function", child


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


def _note_grad_in(call: Call, grad: Tensor) -> None:
    if _measurable(grad) and (size := _size(grad)) is not None:
        call.grad_in = (size, grad.numel())


def _note_grad_out(call: Call, index: int, grad: Tensor) -> None:
    if _measurable(grad) and (size := _size(grad)) is not None:
        call.grads_out[index] = (size, grad.numel())


def _size(tensor: Tensor) -> Tensor | None:
    """Return the RMS, or None where there is no memory to measure it: the user's own pass must not fail by that."""
    return _if_there_is_memory(lambda: rms(tensor))


def _answers(output: Tensor) -> Tensor | None:
    """Return how much the softmax of an output varies: RMS of its deviation from its mean over all samples, by RMS."""

    def measure() -> Tensor:
        chosen = output.float().flatten(0, -2).softmax(-1)
        return rms(chosen - chosen.mean(0)) / rms(chosen)

    return _if_there_is_memory(measure)


def _if_there_is_memory(measure: Callable[[], Tensor]) -> Tensor | None:
    try:
        return measure()
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None
