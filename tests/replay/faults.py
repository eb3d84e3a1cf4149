"""Six faults, each in a module that training scripts are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

FEATURES, CLASSES, SIZE, BAD_STEP = 8, 3, 8, 40
Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """A small network that is trained as it should be."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first = nn.Linear(FEATURES, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)  # where the batch comes in
        hidden = self.drop(torch.relu(self.norm(hidden)))
        return self.last(hidden)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class LogOfZero(Classifier):
    """Takes the logarithm of what may be 0: of how far the sample is from the origin."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        distance = x.norm(dim=1)
        weight = torch.log(distance)  # log(0) for a sample of zeros
        return (nn.functional.cross_entropy(self(x), y, reduction="none") * weight.abs()).mean()


class Half(Classifier):
    """Shares its input out by squares in half precision, which ends at 65504."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.to(torch.float16)
        energy = half * half  # overflows above 255
        share = energy / energy.sum(dim=1, keepdim=True)
        return super().forward(share.float())


class LastBatch(Classifier):
    """Normalises over the batch with a divisor that is 0 in a batch of three."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        spread = torch.as_tensor(float(len(x) - 3)).sqrt()
        scaled = x / spread  # a batch of three divides by 0
        return nn.functional.cross_entropy(self(scaled), y)


def batches(count: int = 60, *, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(CLASSES, FEATURES, generator=generator)
    made = []
    for _ in range(count):
        y = torch.randint(CLASSES, (SIZE,), generator=generator)
        made.append((centres[y] + 0.3 * torch.randn(SIZE, FEATURES, generator=generator), y))
    return made


def changed(row: int, change: Callable[[Tensor], Any]) -> list[Batch]:
    """Return the batches with one sample of the bad step changed in place."""
    made = batches()
    change(made[BAD_STEP][0][row])
    return made


def shortened() -> list[Batch]:
    made = batches()
    x, y = made[BAD_STEP]
    made[BAD_STEP] = (x[:3], y[:3])
    return made


class FlipWeight(Callback):
    """Flip the highest bit of the exponent of one weight, as a bad memory cell does."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == BAD_STEP:
            with torch.no_grad():
                bits = pl_module.last.weight.view(torch.int32)
                bits[1, 5] ^= 1 << 30


class Transient(Callback):
    """Make one gradient NaN once, as a race or a faulty unit does: nothing in batch, weights or code brings it about."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == BAD_STEP:
            pl_module.first.weight.grad[2, 3] = math.nan
