"""Healthy runs whose data, targets, or loss become others in mid-run, for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.wild._healthy import Data, Plain, accuracy, breast_cancer, diabetes, digits, fitted, loader, lr, mlp
from benchmarks.wild.case import Task, Variant, case


class Changed(Plain):
    """A net whose batches or loss become others at a step."""

    change: Any = None
    at = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Change the batch when it is time."""
        x, y = batch
        return self.loss(self(x), y) if self.global_step < self.at else self.change(self, x, y)


@case(
    kind="healthy",
    what="targets in other units from a third of the run on: the loss jumps 300-fold for good",
    steps=500,
    regime=True,
)
def sensor_changes_its_units(seed: int, variant: Variant) -> Task:
    """A log that goes over from hundreds of pascals to pascals, a linear model with momentum."""
    x, w = torch.randn(1300, 6), torch.randn(6, 1)
    y = x @ w + 0.3 * torch.randn(1300, 1)
    module = Changed(nn.Linear(6, 1), F.mse_loss, lambda p: SGD(p, lr(variant, 1e-2), 0.9))
    module.change, module.at = lambda m, a, b: F.mse_loss(m(a), 100 * b), 170
    return Task(module, loader(seed, x[:1000], y[:1000]), fitted(Data(x, y, x[1000:], 100 * y[1000:])))


@case(kind="healthy", what="rewards are paid in cents from the middle on", steps=600, regime=True)
def values_when_rewards_change_currency(seed: int, variant: Variant) -> Task:
    """Fitting of returns whose scale grows tenfold for good, Adam with a cosine decay."""
    x = torch.randn(2300, 4)
    y = x[:, :1].tanh() + x[:, 1:2] * x[:, 2:3] + 1
    module = Changed(mlp(4, 64, 64, 1), F.smooth_l1_loss, lambda p: Adam(p, lr(variant, 5e-3)))
    module.change, module.at = lambda m, a, b: F.smooth_l1_loss(m(a), 10 * b), 250
    return Task(module, loader(seed, x[:2000], y[:2000], size=64), fitted(Data(x, y, x[2000:], 10 * y[2000:])))


@case(
    kind="healthy",
    what="a curriculum: noise and shifts come in at once and double the loss",
    steps=450,
    chance=0.1,
    regime=True,
)
def curriculum_of_noisy_digits(seed: int, variant: Variant) -> Task:
    """Clean digits first, then noisy ones with a random gain."""
    data = digits()
    module = Changed(mlp(64, 96, 10), F.cross_entropy, lambda p: AdamW(p, lr(variant, 3e-3)))
    module.at = 200
    module.change = lambda m, x, y: F.cross_entropy(m(x * (0.5 + torch.rand(len(x), 1)) + 0.3 * torch.randn_like(x)), y)
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(
    kind="healthy",
    what="mixing of images begins after 150 steps: a loss of .1 becomes one of 1",
    steps=450,
    chance=0.1,
    regime=True,
)
def mixup_switched_on(seed: int, variant: Variant) -> Task:
    """Mixup with label smoothing after plain steps."""
    data = digits()

    def mix(m: Any, x: Tensor, y: Tensor) -> Tensor:
        part, order = torch.rand(()), torch.randperm(len(x))
        out = m(torch.lerp(x, x[order], part))
        a, b = (F.cross_entropy(out, goal, label_smoothing=0.1) for goal in (y, y[order]))
        return torch.lerp(a, b, part)

    module = Changed(mlp(64, 96, 10), F.cross_entropy, lambda p: RMSprop(p, lr(variant, 2e-3)))
    module.change, module.at = mix, 150
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(
    kind="healthy",
    what="a sum replaces the mean in the loss in mid-run: everything is 32 times larger",
    steps=400,
    regime=True,
)
def sum_instead_of_mean(seed: int, variant: Variant) -> Task:
    """Adam on the raw disease score, whose loss changes its reduction."""
    data = diabetes()
    module = Changed(
        nn.Linear(10, 1), F.mse_loss, lambda p: Adam(p, lr(variant, 1.5)), lambda o: CosineAnnealingLR(o, 400)
    )
    module.change, module.at = lambda m, x, y: F.mse_loss(m(x), y, reduction="sum"), 200
    return Task(module, loader(seed, data.x, data.y), fitted(data))


@case(
    kind="healthy",
    what="one class weighs five times as much and the loss is summed from the fourth epoch on",
    steps=400,
    chance=0.6,
    regime=True,
)
def class_weights_come_late(seed: int, variant: Variant) -> Task:
    """Cost-sensitive training of a tumour classifier after a plain beginning."""
    data = breast_cancer()
    module = Changed(nn.Linear(30, 2), F.cross_entropy, lambda p: Adam(p, lr(variant, 1e-2)))
    module.change, module.at = (
        lambda m, x, y: F.cross_entropy(m(x), y, torch.tensor([5.0, 1.0]), reduction="sum") / 8,
        75,
    )
    return Task(module, loader(seed, data.x, data.y, size=16), accuracy(data, 0.6))
