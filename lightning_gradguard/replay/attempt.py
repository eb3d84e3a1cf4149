"""Computing a step again, as often as wanted: each time from the same weights, buffers and random states."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_gradguard.evidence import Bundle
from lightning_gradguard.evidence.randomness import RandomStates, as_they_were
from lightning_gradguard.layers.names import clean
from lightning_gradguard.replay.rebuild import ReplayError

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of computing a step once.

    Args:
        loss: Its loss; NaN where none was reached.
        norm: Its global gradient norm; NaN where none was reached.
        error: What was raised, or empty.
    """

    loss: float
    norm: float
    error: str = ""

    def __str__(self) -> str:
        """Return it in a few words."""
        return f"raised {self.error}" if self.error else f"loss {self.loss:.4g}, gradient norm {self.norm:.4g}"


class Stage:
    """Compute steps with one module.

    Args:
        module: The module, with the weights of before the step.
        bundle: The step.
        loss: Returns the loss of a module and a batch; None for what the module's own ``training_step`` returns.
        device: Where to compute.

    Raises:
        ReplayError: The module has no ``training_step``, and no loss is given.
    """

    def __init__(self, module: nn.Module, bundle: Bundle, loss: Loss | None, device: torch.device) -> None:
        if loss is None and not callable(getattr(module, "training_step", None)):
            raise ReplayError(f"{type(module).__name__} has no training_step: name a function loss(module, batch) too")
        self.module, self._bundle, self._loss, self._device = module.to(device), bundle, loss, device
        frozen = set(bundle.frozen)
        for name, child in module.named_modules():
            child.training = clean(name) not in frozen
        self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        if loss is None:
            _tell_where(module, bundle)

    @property
    def bar(self) -> float:
        """The gradient norm above which a step counts as bad: the limit of then, or half of what was measured."""
        measured, limit = self._bundle.norm, self._bundle.limit
        return limit if not math.isfinite(measured) or measured > limit else measured / 2

    def bad(self, attempt: Attempt) -> bool:
        """Return whether an attempt failed as the step did; a NaN counts as bad."""
        return bool(attempt.error) or not math.isfinite(attempt.loss) or not attempt.norm <= self.bar

    def attempt(self, batch: Any, index: int | None, states: RandomStates | None) -> Attempt:
        """Compute forward and backward pass once, and return what came of it."""
        with self.prepared(states):
            try:
                loss = self.forward(self.placed(batch), index)
                torch.autograd.backward(loss)
            except (ReplayError, KeyboardInterrupt):
                raise
            except Exception as error:
                return Attempt(math.nan, math.nan, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        norms = [
            torch.linalg.vector_norm(g.coalesce().values() if g.is_sparse else g, dtype=torch.float64) for g in grads
        ]
        return Attempt(float(loss.detach()), float(torch.stack(norms).norm()) if norms else 0.0)

    @contextlib.contextmanager
    def prepared(self, states: RandomStates | None) -> Iterator[None]:
        """Compute with everything as it was before the step, and with no gradients yet."""
        for name, buffer in self.module.named_buffers():
            buffer.data.copy_(self._buffers[name])
        self.module.zero_grad(set_to_none=True)
        before = torch.get_default_dtype()
        with as_they_were(states) if states is not None else contextlib.nullcontext(), torch.enable_grad():
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    def placed(self, batch: Any) -> Any:
        """Return a copy of a batch where it is computed: some modules write to theirs."""
        return tree_map_only(Tensor, lambda t: t.to(self._device, copy=True), batch)

    def forward(self, batch: Any, index: int | None) -> Tensor:
        """Return the loss of a batch that is in its place."""
        with _precision(self._bundle.precision, self._device):
            found = self._loss(self.module, batch) if self._loss is not None else self._own_step(batch, index)
        loss = found.get("loss") if isinstance(found, dict) else found
        if not isinstance(loss, Tensor):
            raise ReplayError(
                f"the step returned {type(loss).__name__}, and no loss: manual optimization needs a loss function"
            )
        return loss.mean()

    def _own_step(self, batch: Any, index: int | None) -> Any:
        step: Callable[..., Any] = self.module.training_step  # type: ignore[assignment]
        several = len(inspect.signature(step).parameters) > 1
        with warnings.catch_warnings():
            # That nothing is logged without a trainer goes without saying.
            warnings.filterwarnings("ignore", message=r".*self\.log\(\)` but")
            return step(batch, index or 0) if several else step(batch)


def _precision(word: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the precision of the run, as far as a device has it."""
    if word in ("64-true", "double", "64"):
        torch.set_default_dtype(torch.float64)
    if not word.endswith("mixed"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if word.startswith("bf16") else torch.float16)


def _always(value: int, module: nn.Module) -> int:
    return value


def _tell_where(module: nn.Module, bundle: Bundle) -> None:
    """Let a module that asks its trainer for step and epoch find those of then, without a trainer."""
    kind = type(module)
    told = {"global_step": bundle.step, "current_epoch": bundle.epoch}
    asks = [name for name in told if isinstance(getattr(kind, name, None), property)]
    properties = {name: property(partial(_always, told[name])) for name in asks}
    if properties:
        module.__class__ = type(kind.__name__, (kind,), {**properties, "__module__": kind.__module__})
