"""Show a guard the gradients of an accelerate loop, and the loss, before they are clipped.

``Accelerator.clip_grad_norm_`` begins with ``unscale_gradients``, in every one of its ways: right after that the
gradients are as they will be clipped, and that is where the guard looks. Clipping itself stays accelerate's.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lightning_gradguard.guard import Guard
from lightning_gradguard.optimizer_wrappers import innermost
from lightning_gradguard.statistics.loss_owners import LossOwners
from lightning_gradguard.step import StepReport


class AheadOfClipping:
    """Hand each step of one optimizer to a guard, when its accelerator is asked to clip.

    Args:
        guard: The guard; it is bound to the module already.
        optimizer: The optimizer, prepared by an accelerator.
        told: Called with the guard's report of each step.
    """

    def __init__(
        self, guard: Guard, optimizer: Any, told: Callable[[StepReport], object] = lambda report: None
    ) -> None:
        self.guard, self.optimizer = guard, innermost(optimizer)
        self._told = told
        self._losses = LossOwners()
        # Whether the gradients at hand have been judged; some ways of clipping ask twice, and some never.
        self._looked = False
        guard.attach(self.optimizer)
        _cover()
        _watched[self.optimizer] = self

    def backward(self, loss: Tensor) -> None:
        """Sum the loss over the micro-batches of a step."""
        self._looked = False
        self.guard.follow(loss)
        self._losses.backward(loss, (self.optimizer,))

    def look(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Judge the gradients that are there now, unless that was done since the last backward pass."""
        if self._looked:
            return
        self._looked = True
        loss = self._losses.of(self.optimizer)
        self._told(self.guard.before_step(self.optimizer, loss=loss, scaler=scaler))

    def close(self) -> None:
        """Look no more, and put everything back."""
        _watched.pop(self.optimizer, None)
        self.guard.settle()
        self.guard.flush()
        self.guard.close()


@contextmanager
def guarding(guard: Guard, optimizer: Any) -> Iterator[AheadOfClipping]:
    """Guard an optimizer in a ``with`` block around the loop, which calls ``accelerator.clip_grad_norm_`` at each step.

    Where nothing is to be clipped, a bound of ``float("inf")`` does it.
    """
    ahead = AheadOfClipping(guard, optimizer)
    try:
        yield ahead
    finally:
        ahead.close()


# By the optimizers, which say to which accelerator a guard belongs; one that is gone takes its entry along.
_watched: weakref.WeakKeyDictionary[torch.optim.Optimizer, AheadOfClipping] = weakref.WeakKeyDictionary()


def _of(accelerator: Accelerator) -> list[AheadOfClipping]:
    if not _watched:
        return []
    found = (_watched.get(innermost(optimizer)) for optimizer in accelerator._optimizers)
    return [ahead for ahead in found if ahead is not None]


def _cover() -> None:
    """Wrap two methods of Accelerator, once; without a guard they do what they did before."""
    if hasattr(Accelerator.unscale_gradients, "covered"):
        return
    backward, unscale = Accelerator.backward, Accelerator.unscale_gradients

    @functools.wraps(backward)
    def with_loss(self: Accelerator, loss: Tensor, **options: Any) -> Any:
        for ahead in _of(self):
            ahead.backward(loss / self.gradient_accumulation_steps)
        return backward(self, loss, **options)

    @functools.wraps(unscale)
    def and_look(self: Accelerator, optimizer: Any = None) -> Any:
        result = unscale(self, optimizer)
        for ahead in _of(self):
            ahead.look(self.scaler)
        return result

    and_look.covered = True  # type: ignore[attr-defined]
    Accelerator.backward, Accelerator.unscale_gradients = with_loss, and_look
