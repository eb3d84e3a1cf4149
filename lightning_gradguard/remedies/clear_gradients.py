"""Clear the gradients of the update before, where the training loop does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext


class ClearGradients(Remedy):
    """Clear the gradients before each backward pass from now on, once an optimizer has stepped by them.

    Where ``zero_grad`` was forgotten each update repeats all earlier ones: a momentum that never fades. It is done as
    ``zero_grad`` does it, by setting them to None.
    """

    name: ClassVar[str] = "clear"
    acts: ClassVar[frozenset[str]] = frozenset({Act.CLEAR})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._lasts = False

    def apply(self, context: RemedyContext) -> Outcome:
        """Begin with it."""
        if self._lasts:
            return Outcome(self.name, applied=False, detail="gradients are cleared already")
        self._lasts = True
        return Outcome(self.name, True, "gradients are cleared before each backward pass from now on")

    def before_backward(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Clear gradients that were stepped by already."""
        if self._lasts:
            for parameter in parameters:
                parameter.grad = None
        return self._lasts

    def take_back(self, context: RemedyContext) -> None:
        """Let them pile up again, as the loop was written."""
        self._lasts = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether they are cleared."""
        return {"lasts": self._lasts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._lasts = bool(state["lasts"])
