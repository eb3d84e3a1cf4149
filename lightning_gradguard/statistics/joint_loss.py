"""The loss of a step as all processes must see it: each has one of its own, and all must come to the same verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_gradguard.statistics.collectives import Collectives

LOSS_EVERY = 8
"""With several processes their losses are averaged once in so many healthy steps, all at a time: they can wait."""


class JointLoss:
    """Average the losses of several processes, as seldom as calm allows; one process's own loss is known at once.

    Attributes:
        own: Losses of this process that are to be averaged.
        averaged: Averages that nobody has learned from yet.
    """

    def __init__(self) -> None:
        self.own: list[float] = []
        self.averaged: list[float] = []

    def of(
        self, loss: Tensor | float | None, collectives: Collectives, step: int, can_wait: Callable[[], bool]
    ) -> tuple[Sequence[float], float | None]:
        """Return the averages of earlier steps, to be learned now, and the loss of this one, None while that can wait.

        Args:
            loss: The loss of this process.
            collectives: The processes that must come to the same verdict.
            step: Steps judged so far, the same on all processes.
            can_wait: Tells, alike on all processes, whether nothing calls for the loss as a second witness.
        """
        value = value_of(loss)
        if collectives.size == 1 or value is None:
            return (), value
        self.own.append(value)
        if step % LOSS_EVERY and can_wait():
            return (), None
        *earlier, now = collectives.mean(self.own)
        earlier = self.averaged + earlier
        self.own.clear()
        self.averaged.clear()
        return earlier, now

    def drop(self) -> None:
        """Leave the newest loss out of the mean: its step was skipped."""
        if self.own:
            self.own.pop()

    def settle(self, collectives: Collectives) -> None:
        """Average what waits, so that one process's state is that of all; it is learned from when its turn comes."""
        if self.own:
            self.averaged += collectives.mean(self.own)
            self.own.clear()


def value_of(loss: Tensor | float | None) -> float | None:
    """Return a loss as a number on the host, waiting for the device where it is there."""
    return None if loss is None else float(loss.item() if isinstance(loss, Tensor) else loss)
