"""What is at hand of this step and the one before: batches by reference, and random states before the forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lightning_gradguard.evidence.randomness import RandomStates, read

MOST_AT_HAND = 16
"""Micro-batches of one step that are kept at hand; of a longer accumulation the last ones."""


class Moment(NamedTuple):
    """One forward pass as it was about to begin.

    Args:
        batch: The batch itself, not a copy; None where it is not kept.
        batch_index: Its number in the epoch.
        random: The random states, as they were after the batch was loaded.
    """

    batch: Any
    batch_index: int | None
    random: RandomStates


class Hand:
    """Keep at hand what two steps were computed from.

    A step that is judged on its device is known to be bad one step later, so what it was computed from must outlive it;
    and the batch of a step that was fine tells, when a bad one is replayed, whether the data or the weights are at
    fault.

    Attributes:
        now: The forward passes of the step under way, oldest first.
        before: Those of the step before it.
        loss: The loss of the step that was noted last.
    """

    def __init__(self) -> None:
        self.now: deque[Moment] = deque(maxlen=MOST_AT_HAND)
        self.before: deque[Moment] = deque(maxlen=MOST_AT_HAND)
        self._over = False
        self.loss: Any = None

    def take(self, batch: Any, batch_index: int | None, devices: Sequence[torch.device] = ()) -> None:
        """Note a batch that is about to be computed; the first one after a step begins the next step."""
        if self._over:
            self.now, self.before = self.before, self.now
            self.now.clear()
            self._over = False
        self.now.append(Moment(batch, batch_index, read(devices)))

    def step(self, loss: Any = None) -> None:
        """Note that a step is about to be made of what is at hand, and its loss, which is not waited for."""
        # Without its graph, which would outlive the step.
        self._over, self.loss = True, loss.detach() if isinstance(loss, torch.Tensor) else loss

    def passes(self, *, deferred: bool) -> tuple[list[Moment], Moment | None]:
        """Return the forward passes of the step that was noted last, and one of another step.

        Args:
            deferred: Whether that of the next step may have begun since.
        """
        bad, fine = (self.before, self.now) if deferred and not self._over else (self.now, self.before)
        return list(bad), fine[-1] if fine else None

    def drop(self) -> None:
        """Let go of all of it."""
        self.now.clear()
        self.before.clear()
        self._over, self.loss = False, None
