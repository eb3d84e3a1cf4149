"""The contract of a witness: it looks at one step of a window, and says what it has seen when the window ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard import checks
from lightning_gradguard.records import Window


@dataclass(frozen=True, slots=True)
class WitnessContext:
    """A step, after its gradients are known and before its update is made.

    Args:
        parameters: The optimizer's parameters, by name.
        optimizer: The optimizer.
        names: Names of the parameters that have a gradient.
        grads: Their gradients; none where they are sharded over processes.
        scale: What a GradScaler has multiplied them by and not yet divided out; a tensor stays on its device.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    names: Sequence[str]
    grads: Sequence[Tensor]
    scale: Tensor | float = 1.0


class Witness(ABC):
    """Measure something that may move before the gradient does.

    A witness may raise: it is then silent for the rest of the run, which one warning tells. It must not draw random
    numbers, wait for a device in :meth:`look`, or change anything.

    Attributes:
        name: What its scalar is called.
        times: Times the median of the windows before from which a value is evidence.
        least: What a value must exceed to be evidence at all.
        beyond: A value that is evidence whatever came before it.
    """

    name: ClassVar[str]
    times: ClassVar[float] = 10.0
    least: ClassVar[float] = 0.0
    beyond: ClassVar[float] = math.inf

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    def look(self, scene: WitnessContext) -> None:
        """Look at the first step of a window; what lies on a device is only sent on its way."""

    @abstractmethod
    def take(self, window: Window) -> dict[str, float]:
        """Return what was seen in a window that has ended, by place, and forget it; larger must be worse."""

    def speaks(self, value: float, usual: float | None) -> bool:
        """Return whether a value is evidence, given the median of its place; so written that a NaN is."""
        if not value <= self.beyond:
            return True
        return usual is not None and value > self.least and not value <= self.times * usual
