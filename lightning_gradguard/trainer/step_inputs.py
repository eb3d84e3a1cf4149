"""What the guard is told of a step besides its gradients: the loss, summed over its micro-batches, and the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class StepInputs:
    """Keep loss and batch from where Lightning shows them until the step.

    Attributes:
        batch: The batch at hand.
        batch_index: Its number.
    """

    def __init__(self) -> None:
        self.batch: Any = None
        self.batch_index: int | None = None
        self._loss: Tensor | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch; Lightning has divided it by their number."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def take_loss(self, trainer: Trainer, scaler: Any) -> Tensor | None:
        """Return the loss of the step, and begin anew; None where nobody knows whose loss it is."""
        loss, self._loss = self._loss, None
        # With several optimizers it may be any one's; a GAN's generator loss rises in health.
        if loss is None or len(trainer.optimizers) > 1:
            return None
        return loss / scaler.get_scale() if scaler is not None and scaler.is_enabled() else loss

    def forget(self) -> None:
        """Let go of loss and batch."""
        self.batch = self._loss = None
