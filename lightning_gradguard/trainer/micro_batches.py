"""What the guard is told of a step besides its gradients: the loss, summed over its micro-batches, and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.statistics.loss_owners import LossOwners


class MicroBatches:
    """Keep loss and batch from where Lightning shows them until the step.

    Attributes:
        batch: The batch at hand.
        batch_index: Its number.
    """

    def __init__(self) -> None:
        self.batch: Any = None
        self.batch_index: int | None = None
        self._losses = LossOwners()

    def add_loss(self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Add the loss of a micro-batch, which Lightning has divided by their number.

        Returns:
            Whether losses that were handed out have turned out not to be those of the optimizers that took them.
        """
        return self._losses.backward(loss, optimizers)

    def take_loss(self, optimizer: torch.optim.Optimizer, scaler: Any) -> Tensor | None:
        """Return the loss of an optimizer's step; None where nobody knows whose loss it is."""
        loss = self._losses.of(optimizer)
        if loss is None or scaler is None or not scaler.is_enabled():
            return loss
        scale: Tensor = scaler._get_scale_async()  # get_scale() would wait for the device
        return loss / scale

    def forget(self) -> None:
        """Let go of loss and batch."""
        self.batch = None
        self._losses.drop()
