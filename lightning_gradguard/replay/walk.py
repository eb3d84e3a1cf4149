"""Walking a step operation by operation, forward and backward, to where it goes wrong."""

from __future__ import annotations

import linecache
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_gradguard
from lightning_gradguard.layers.names import clean
from lightning_gradguard.replay.operation import Operation, Seen, Site, seen

_FOREIGN = tuple(f"{Path(str(package.__file__)).parent}/" for package in (torch, lightning_gradguard))
_UNSET = ("empty", "new_empty", "resize", "rand")
"""Beginnings of the names of operations whose output means nothing yet, or is drawn."""
_FILLS = (
    *("copy_", "fill_", "zero_", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_"),
    *("random_", "uniform_"),
)
"""Operations that write over a tensor whatever is in it, which may be memory that nobody has set."""


class Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Look at every operation while a step is computed.

    Args:
        module: The module that computes.

    Attributes:
        operations: Those with a float output, in their order.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._module = module
        # By their memory, since what a layer computes with is often a view.
        self._names = {p.untyped_storage().data_ptr(): clean(name) for name, p in module.named_parameters()}
        self._stack: list[str] = []
        self._sites: dict[int, Site] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Any:
        """Begin to look."""
        for name, child in self._module.named_modules():
            self._hooks.append(
                child.register_forward_pre_hook(lambda _m, _a, name=name: self._stack.append(clean(name)))
            )
            self._hooks.append(child.register_forward_hook(lambda *_: self._leave(), always_call=True))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Take the hooks off."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _leave(self) -> None:
        if self._stack:
            self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operation, and note what went in and came out."""
        kwargs = kwargs or {}
        name = str(func).removesuffix(".default")
        short = name.split(".")[1] if "." in name else name
        # What is written over before it is read tells nothing.
        given = args[1:] if short in _FILLS else args
        read = {key: value for key, value in kwargs.items() if key != "out"}
        inputs = tuple(map(self._seen, _floats((given, read))))
        site, phase = self._where()
        result = func(*args, **kwargs)
        outputs = [] if short.startswith(_UNSET) else [self._seen(t) for t in _floats(result)]
        if outputs:
            output = max(outputs, key=lambda one: (one.nan, one.inf, one.peak))
            made = "" if _meant((args, kwargs)) else _made(inputs, output)
            self.operations.append(Operation(name, phase, site, inputs, output, made))
        return result

    def _where(self) -> tuple[Site, str]:
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._sites.get(_number_of(node), Site()), "backward"
        file, line = _users(sys._getframe(2))
        found = Site(self._stack[-1] if self._stack else "", file, line, linecache.getline(file, line).strip())
        # The node of this operation has just been numbered; by that its part of the backward pass is known again.
        self._sites[torch._C._autograd._get_sequence_nr() - 1] = found
        return found, "forward"

    def _seen(self, tensor: Tensor) -> Seen:
        return seen(tensor, self._names.get(tensor.untyped_storage().data_ptr(), ""))


def _number_of(node: Any) -> int:
    number = getattr(node, "_sequence_nr", None)
    return int(number()) if callable(number) else -1


def _users(frame: FrameType | None) -> tuple[str, int]:
    """Return file and line of the innermost frame that is neither torch's nor ours."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_FOREIGN) and not file.startswith("<"):
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _floats(values: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.layout == torch.strided:
            yield leaf


def _meant(arguments: Any) -> bool:
    """Return whether inf or NaN is what was asked for, as where a mask is filled with -inf."""
    return any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in tree_leaves(arguments))


def _made(inputs: tuple[Seen, ...], output: Seen) -> str:
    if output.nan and not any(one.nan for one in inputs):
        return "NaN"
    return "inf" if output.inf and not any(one.nan or one.inf for one in inputs) else ""
