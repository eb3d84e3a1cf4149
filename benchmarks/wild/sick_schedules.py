"""Sick runs whose learning rate, weight decay or loss weight is or becomes far too high."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.lr_scheduler import LambdaLR, StepLR

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, dense, explained, shuffled
from benchmarks.zoo.data import digits, housing


@case(
    kind="sick",
    what="a warm-up that nobody ends: the rate grows by its first value at every step",
    correction="a lower learning rate",
    steps=400,
    chance=0.1,
)
def ramp_that_nobody_ends(seed: int, variant: Variant) -> Task:
    """A warm-up that nobody ends: the rate grows by its first value at every step."""
    d = digits()
    base = 1e-5 if variant == "corrected" else 1e-3

    def rate(step: int) -> float:
        return float(min(step + 1, 10)) if variant == "twin" else (step + 1.0)

    net = dense(64, 64, 64, 64, 10)
    module = Plain(net, cross_entropy, lambda p: torch.optim.NAdam(p, base), lambda o: LambdaLR(o, rate))
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


@case(
    kind="sick",
    what="StepLR with gamma 10 where 0.1 was meant",
    correction="a lower learning rate",
    steps=300,
    chance=0.0,
)
def gamma_of_ten(seed: int, variant: Variant) -> Task:
    """StepLR with gamma 10 where 0.1 was meant."""
    h = housing()
    gamma, lr = (0.1 if variant == "twin" else 10.0), (5e-4 if variant == "corrected" else 0.03)
    net = dense(8, 48, 48, 1, act=nn.ELU)
    module = Plain(
        net, mse_loss, lambda p: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), lambda o: StepLR(o, 100, gamma)
    )
    return Task(module, shuffled(h.x, h.y, seed=seed), explained(h.x_test, h.y_test))


@case(
    kind="sick",
    what="the second restart of a home-made cosine schedule multiplies the rate by 300",
    correction="a lower learning rate",
    steps=330,
    chance=0.1,
)
def cosine_restart_too_high(seed: int, variant: Variant) -> Task:
    """The second restart of a home-made cosine schedule multiplies the rate by 300."""
    d = digits()
    base, tops = (5e-5 if variant == "corrected" else 4e-3), ((1, 1, 1) if variant == "twin" else (1, 300, 90))

    def rate(step: int) -> float:
        return tops[min(step // 110, 2)] * (0.5 + 0.5 * float(torch.tensor(step % 110 * 3.1416 / 110).cos()))

    net = dense(64, 64, 48, 48, 10, act=nn.SiLU)
    module = Plain(net, cross_entropy, lambda p: torch.optim.RAdam(p, base), lambda o: LambdaLR(o, rate))
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


class Subtracted(Plain):
    """A net whose author adds an L2 term by hand, with the sign of ``decay``."""

    decay = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Add the L2 term to the loss."""
        return super().training_step(batch, batch_idx) + self.decay * sum(p.square().sum() for p in self.parameters())


@case(
    kind="sick",
    what="the L2 penalty is subtracted where it should be added, so weights grow without end",
    correction="a lower learning rate",
    steps=400,
    chance=0.0,
)
def l2_penalty_subtracted(seed: int, variant: Variant) -> Task:
    """The L2 penalty is subtracted where it should be added, so weights grow without end."""
    h = housing()
    lr = 0.01 if variant == "corrected" else 0.1
    module = Subtracted(dense(8, 48, 48, 1, act=nn.Tanh), mse_loss, lambda p: torch.optim.SGD(p, lr, momentum=0.9))
    module.decay = 1e-3 if variant == "twin" else -0.01
    return Task(module, shuffled(h.x, h.y, seed=seed), explained(h.x_test, h.y_test))
