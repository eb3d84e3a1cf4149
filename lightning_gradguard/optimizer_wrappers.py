"""Optimizers inside optimizers: accelerate, Fabric and Lightning wrap the one that keeps state and makes updates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch


def _nothing() -> None:
    """Do nothing before a step."""


class StepHook:
    """Call a function after each ``optimizer.step()``, and perhaps one before it, until it is removed.

    An optimizer that never called its base class's constructor has no hooks; there ``step`` itself is covered, on this
    one instance.

    Args:
        optimizer: The optimizer.
        function: Called without arguments.
        before: The same, before the step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, function: Callable[[], None], *, before: Callable[[], None] = _nothing
    ) -> None:
        self._remove: Callable[[], None]
        if hasattr(optimizer, "_optimizer_step_post_hooks") and getattr(type(optimizer).step, "hooked", False):
            first = optimizer.register_step_pre_hook(lambda *_: before())
            last = optimizer.register_step_post_hook(lambda *_: function())

            def unhook() -> None:
                first.remove()
                last.remove()

            self._remove = unhook
            return
        step = optimizer.step

        @functools.wraps(step)
        def covered(*args: Any, **kwargs: Any) -> Any:
            before()
            result = step(*args, **kwargs)
            function()
            return result

        own, earlier = vars(optimizer), vars(optimizer).get("step")
        own["step"] = covered

        def remove() -> None:
            if own.get("step") is not covered:
                return  # A scheduler has covered it since, and keeps calling it.
            own.pop("step")
            if earlier is not None:
                own["step"] = earlier

        self._remove = remove

    def remove(self) -> None:
        """Call the function no more."""
        self._remove()


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside wrappers that merely hand its groups and its state on; any other as it is.

    Raises:
        TypeError: It is no optimizer, and wraps none.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        same = (getattr(optimizer, key, None) is getattr(inner, key) for key in ("param_groups", "state"))
        # One with state of its own (Lookahead) makes updates of its own.
        if isinstance(optimizer, torch.optim.Optimizer) and not all(same):
            break
        optimizer = inner
    groups = getattr(optimizer, "param_groups", None)
    known = isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)
    if not known or not isinstance(getattr(optimizer, "state", None), Mapping) or not hasattr(optimizer, "step"):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or wrap one as .optimizer, with param_groups, state and step, "
            f"got {type(optimizer).__name__}"
        )
    found: torch.optim.Optimizer = optimizer
    return found
