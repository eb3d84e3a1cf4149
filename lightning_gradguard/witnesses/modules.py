"""Witnesses that look into modules: hooks, in place during the forward passes of one step of a window only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.arriving import Arriving
from lightning_gradguard.layers.names import clean, compiled
from lightning_gradguard.records import Window
from lightning_gradguard.witnesses.witness import Witness, WitnessContext


class ModuleWitness(Witness):
    """Reduce what a module computes to one number on its device, in the first step of each window.

    Hooks are put in place right before a batch goes through the module and taken off before its update, so that all
    other steps, validation, and copies of the module know nothing of them. Inside a compiled graph no hook would fire,
    so a module of which a part is compiled is not looked at, which is said once.

    Args:
        modules: Shell-style patterns of qualified module names, and classes of modules.

    Raises:
        ValueError: An item is neither.
    """

    def __init__(self, modules: Sequence[str | type[nn.Module]]) -> None:
        if isinstance(modules, str) or not all(isinstance(one, (str, type)) for one in modules):
            raise ValueError(f"modules must be a list of names and classes of modules, got {modules!r}")
        self.modules = tuple(modules)
        self._rest()

    def _rest(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._largest: dict[str, Tensor] = {}
        self._places: list[str] = []
        self._arriving: Arriving | None = None
        self._error: Exception | None = None

    @abstractmethod
    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Return what one call of a module comes to, as a tensor of no dimensions on its device, or None."""

    @property
    def armed(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def arm(self, module: nn.Module, trained: Iterable[nn.Parameter]) -> None:
        """Hook the modules that were asked for, but for those that only another optimizer trains.

        Raises:
            LookupError: There is none, or a part of ``module`` is compiled; the message says so.
        """
        if compiled(module):
            raise LookupError("a part of the model is compiled, and no hook fires in there")
        mine = {id(parameter) for parameter in trained}
        found = {clean(name): child for name, child in module.named_modules() if self._asked_for(clean(name), child)}
        if not found:
            raise LookupError(f"no module is one of {', '.join(map(str, self.modules))}")
        for name, child in found.items():
            own = [id(parameter) for parameter in child.parameters()]
            if not own or not mine.isdisjoint(own):
                self._handles.append(child.register_forward_hook(_Tap(self, name), with_kwargs=True))

    def _asked_for(self, name: str, module: nn.Module) -> bool:
        return any(fnmatchcase(name, one) if isinstance(one, str) else isinstance(module, one) for one in self.modules)

    @torch.no_grad()
    def hear(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take in one call of a module; an error waits until the forward pass is over."""
        try:
            value = self.read(module, args, kwargs, output)
            if value is not None:
                known = self._largest.get(name)
                self._largest[name] = value if known is None else torch.maximum(known, value)
        except Exception as error:
            self._error = error

    def look(self, scene: WitnessContext) -> None:
        """Take the hooks off, and send what they have measured on its way to the host."""
        self.disarm()
        largest, self._largest = self._largest, {}
        if self._error is not None:
            raise self._error
        if largest:
            self._places = list(largest)
            self._arriving = Arriving(torch.stack([value.float() for value in largest.values()]))

    def disarm(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self, window: Window) -> dict[str, float]:
        """Return the largest number of each module."""
        arriving, self._arriving = self._arriving, None
        return {} if arriving is None else dict(zip(self._places, arriving.read().tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: what was asked for."""
        return {"modules": self.modules, **self._configuration()}

    def _configuration(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it back."""
        vars(self).update(state)
        self._rest()


class _Tap:
    """The hook of one module. A module that is copied while it is in place gets one that does nothing."""

    def __init__(self, witness: ModuleWitness | None = None, name: str = "") -> None:
        self._witness, self._name = witness, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Validation may come between two micro-batches, and says nothing of the step.
        if self._witness is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._witness.hear(self._name, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tap, ()


def first_tensor(output: Any) -> Tensor | None:
    """Return a module's output if it is a tensor, or the first tensor of a tuple or list; None where there is none."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    return next((part for part in parts if isinstance(part, Tensor) and part.is_floating_point()), None)
