"""Sick runs in which a batch statistic or an averaged copy is damaged on the way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, dense, fit, shuffled
from benchmarks.zoo.data import digits


class Frozen(Plain):
    """A net with frozen batch statistics, one buffer of which may be overwritten before a step."""

    damaged, mended = -1, False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        """Freeze the statistics; after the damage, perhaps skip the batch and put the buffer back."""
        norm = next(m for m in self.net if isinstance(m, nn.BatchNorm1d))  # type: ignore[union-attr]
        norm.eval()
        if self.global_step == self.damaged:
            before = norm.running_var.clone()  # type: ignore[union-attr]
            norm.running_var.mul_(1e-9)  # type: ignore[union-attr]
            if self.mended:
                norm.running_var.copy_(before)  # type: ignore[union-attr]
                return None
        return super().training_step(batch, batch_idx)


@case(
    kind="sick",
    what="the frozen running variance of a tuned net is overwritten in units of nanometres in mid-run",
    correction="the buffer put back and that batch skipped",
    steps=300,
    chance=0.1,
)
def frozen_variance_overwritten(seed: int, variant: Variant) -> Task:
    """The frozen running variance of a tuned net is overwritten in units of nanometres in mid-run."""
    d = digits()
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    fit(net, cross_entropy, d.x, d.y, 60)
    module = Frozen(net, cross_entropy, lambda p: torch.optim.SGD(p, 0.03, momentum=0.9))
    module.damaged, module.mended = (-1 if variant == "twin" else 150), variant == "corrected"
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


class Student(Plain):
    """A net that also learns from an average of itself, which may be damaged before a step."""

    damaged, mended = -1, False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    @torch.no_grad()
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the teacher follow."""
        for t, p in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            t.lerp_(p, 0.05)
            if self.global_step == self.damaged and t.ndim == 2:
                t.fill_(float("inf"))
                if self.mended:
                    t.copy_(p)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Add the distance to what the teacher says about noisy images."""
        x = batch[0]
        noisy = x + 0.2 * torch.randn_like(x)
        return super().training_step(batch, batch_idx) + 0.1 * mse_loss(self(noisy), self.teacher(x))


@case(
    kind="sick",
    what="the averaged copy that teaches the net overflows in mid-run, and stays so",
    correction="the copy made anew from the net",
    steps=300,
    chance=0.1,
)
def teacher_overflows(seed: int, variant: Variant) -> Task:
    """The averaged copy that teaches the net overflows in mid-run, and stays so."""
    d = digits()
    module = Student(dense(64, 64, 10, act=nn.SiLU), cross_entropy, lambda p: torch.optim.NAdam(p, 3e-3))
    module.damaged, module.mended = (-1 if variant == "twin" else 200), variant == "corrected"
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


class OtherUnits(Plain):
    """A net that is given two batches in other units, which it may skip."""

    factor, skips = 1.0, False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        """Multiply the targets of two batches."""
        x, y = batch
        if self.global_step in (140, 141):
            if self.skips:
                return None
            y = y * self.factor
        return super().training_step((x, y), batch_idx)
