"""What a training loop tells of a step besides its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class StepInputs(NamedTuple):
    """Loss, batch and scaler of one step. A tuple, since one is made at every step and a frozen dataclass costs more.

    Args:
        loss: The loss of the step, or None.
        batch: The batch, or None.
        batch_index: Its number, or None.
        step: The trainer's number of the step; None where the guard counts.
        scaler: The GradScaler that owns the step, or None.
        earlier: The micro-batches before it that the step is made of too, with their numbers, as far as they are kept.
    """

    loss: Tensor | float | None = None
    batch: Any = None
    batch_index: int | None = None
    step: int | None = None
    scaler: Any = None
    earlier: Sequence[tuple[Any, int | None]] = ()

    @property
    def batches(self) -> Iterator[tuple[Any, int | None]]:
        """The micro-batches of the step, the last one first, each with its number."""
        yield self.batch, self.batch_index
        yield from reversed(self.earlier)


MOST = 16
"""Micro-batches of one step that are kept; of a longer accumulation the last ones."""


class Passes:
    """Keep, by reference, the micro-batches of the step under way: any of them may be at fault.

    Attributes:
        earlier: Those before the last one, each with its number.
        over: Whether the step has been made, so that the next batch begins another one.
    """

    def __init__(self) -> None:
        self.earlier: tuple[tuple[Any, int | None], ...] = ()
        self.over = True
        self._last: tuple[Any, int | None] = (None, None)

    def take(self, batch: Any, batch_index: int | None, *, keep: bool) -> None:
        """Note a batch that is about to be computed.

        Args:
            batch: The batch.
            batch_index: Its number.
            keep: Whether those before it may be held too, for which an accelerator may lack the memory.
        """
        self.earlier = () if self.over or not keep else (*self.earlier, self._last)[1 - MOST :]
        self._last, self.over = (batch, batch_index), False

    def drop(self) -> None:
        """Let go of them."""
        self.earlier, self._last, self.over = (), (None, None), True
