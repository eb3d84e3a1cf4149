"""Sick runs whose rate does not fit how their gradients are gathered."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.fault_nets import classify, mlp, pick, regress, sgd


class SummedMicroBatches(LightningModule):
    """Manual optimization that adds up the gradients of micro-batches, each of a summed loss."""

    def __init__(self, lr: float, micro: int, mean: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = mlp([64, 96, 48, 10])
        self.lr, self.micro, self.mean = lr, micro, mean

    def forward(self, x: Tensor) -> Tensor:
        """Give class logits."""
        out: Tensor = self.model(x)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Go through the micro-batches, then step."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        total = torch.zeros(())
        for x, y in zip(*(torch.split(part, self.micro) for part in batch), strict=True):
            loss = F.cross_entropy(self(x), y, reduction="sum")
            self.manual_backward(loss / len(batch[0]) if self.mean else loss)
            total = total + loss.detach()
        optimizer.step()
        return total

    def configure_optimizers(self) -> Any:
        """Use SGD with momentum."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


@case(kind="sick", what="micro-batches summed, manual optimization", correction="lower rate", steps=300, chance=0.1)
def micro_batches_summed(seed: int, variant: Variant) -> Task:
    """Gradients of 128 samples added up at the rate of their mean."""
    d = data.digits().standardized()
    module = SummedMicroBatches(pick(variant, 0.1, 0.1, 2e-4), 32, variant == "twin")
    return Task(module, data.batches(d.x, d.y, 128, seed), data.accuracy(d.x_test, d.y_test))


def summed_error(out: Tensor, y: Tensor) -> Tensor:
    """Give the squared error with ``reduction="sum"``."""
    return F.mse_loss(out, y, reduction="sum")


@case(
    kind="sick", what="summed loss under accumulate_grad_batches", correction="lower rate", steps=200,
    trainer=lambda: {"accumulate_grad_batches": 4},
)  # fmt: skip
def summed_and_accumulated(seed: int, variant: Variant) -> Task:
    """A loss of ``reduction="sum"``, accumulated over four batches, at the rate of a mean."""
    loss = F.mse_loss if variant == "twin" else summed_error
    return regress(mlp([4, 64, 64, 1]), data.waves(), sgd(pick(variant, 0.05, 0.05, 1e-3), 0.9), seed, loss=loss)


@case(kind="sick", what="batches of one at a rate for sixty-four", correction="lower rate", steps=800, chance=0.34)
def one_ring_at_a_time(seed: int, variant: Variant) -> Task:
    """Single samples by SGD with momentum at 0.3."""
    optimizer = sgd(pick(variant, 0.3, 0.1, 0.002), 0.9)
    return classify(mlp([2, 48, 48, 3]), data.rings(), optimizer, seed, size=64 if variant == "twin" else 1)
