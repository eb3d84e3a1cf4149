"""Sick runs that go on from a trained net, and do so badly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, dense, explained, fit, shuffled
from benchmarks.zoo.data import digits, housing


def small_cnn(classes: int = 5) -> nn.Sequential:
    """Build two convolutions and two linear layers for 8x8 images."""
    conv = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*conv, nn.Linear(384, 32), nn.ReLU(), nn.Linear(32, classes))


def halves() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split the digits into those below five, and the others: each as training and test tensors."""
    d = digits()
    low, low_test = d.y < 5, d.y_test < 5
    first = (d.x[low], d.y[low], d.x_test[low_test], d.y_test[low_test])
    return first, (d.x[~low], d.y[~low] - 5, d.x_test[~low_test], d.y_test[~low_test] - 5)


@case(
    kind="sick",
    what="a CNN trained on one half of the digits is tuned on the other half with a far too high rate",
    correction="a lower learning rate",
    steps=250,
    chance=0.2,
)
def cnn_tuned_with_a_high_rate(seed: int, variant: Variant) -> Task:
    """A CNN trained on one half of the digits is tuned on the other half with a far too high rate."""
    (x, y, *_), (x2, y2, *test) = halves()
    net = fit(small_cnn(), cross_entropy, x, y, 80)
    net[-1].reset_parameters()
    lr = {"written": 1.0, "twin": 0.03, "corrected": 0.05}[variant]
    module = Plain(net, cross_entropy, lambda p: torch.optim.SGD(p, lr, momentum=0.9))
    return Task(module, shuffled(x2, y2, seed=seed), accuracy(*test))


@case(
    kind="sick",
    what="training goes on with Adam's two betas swapped",
    correction="a lower learning rate",
    steps=300,
    chance=0.1,
)
def betas_swapped_on_resuming(seed: int, variant: Variant) -> Task:
    """Training goes on with Adam's two betas swapped."""
    d = digits()
    net = fit(dense(64, 48, 48, 48, 48, 10), cross_entropy, d.x, d.y, 60)
    betas = (0.9, 0.999) if variant == "twin" else (0.999, 0.9)
    lr = 1e-4 if variant == "corrected" else 0.03
    module = Plain(net, cross_entropy, lambda p: torch.optim.Adam(p, lr, betas))
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


@case(
    kind="sick",
    what="a trained trunk and a new head get one rate, that of the head",
    correction="a lower learning rate",
    steps=300,
    chance=0.2,
)
def one_rate_for_head_and_trunk(seed: int, variant: Variant) -> Task:
    """A trained trunk and a new head get one rate, that of the head."""
    (x, y, *_), (x2, y2, *test) = halves()
    trunk = fit(small_cnn(), cross_entropy, x, y, 80)[:-1]
    net = nn.Sequential(trunk, nn.Linear(32, 5))
    lr = 0.02 if variant == "corrected" else 0.5

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        rate = lr / 50 if variant == "twin" else lr
        groups = [
            {"params": trunk.parameters(), "lr": rate},
            {"params": net[1].parameters(), "lr": lr / (5 if variant == "twin" else 1)},
        ]
        return torch.optim.SGD(groups, lr, momentum=0.9)

    return Task(Plain(net, cross_entropy, optimizer), shuffled(x2, y2, seed=seed), accuracy(*test))


@case(
    kind="sick",
    what="Adagrad goes on without the sums it had: every first step is as large as the rate",
    correction="a lower learning rate",
    steps=200,
    chance=0.0,
)
def adagrad_without_its_sums(seed: int, variant: Variant) -> Task:
    """Adagrad goes on without the sums it had: every first step is as large as the rate."""
    h = housing()
    net = fit(dense(8, 64, 64, 64, 1), mse_loss, h.x, h.y, 200)
    lr, sums = (0.01 if variant == "corrected" else 0.5), (50.0 if variant == "twin" else 0.0)
    module = Plain(net, mse_loss, lambda p: torch.optim.Adagrad(p, lr, initial_accumulator_value=sums))
    return Task(module, shuffled(h.x, h.y, seed=seed, size=64), explained(h.x_test, h.y_test))


class Lion(torch.optim.Optimizer):
    """Step by the sign of a momentum (Chen et al., 2023), as copied from a blog."""

    def __init__(self, params: object, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> object:
        """Take a step."""
        with torch.enable_grad():
            loss = closure() if callable(closure) else None
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_((b1 * m + (1 - b1) * p.grad).sign(), alpha=group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


@case(
    kind="sick",
    what="a trained net goes on with Lion at a rate fit for SGD",
    correction="a lower learning rate",
    steps=300,
    chance=0.0,
)
def lion_with_the_rate_of_sgd(seed: int, variant: Variant) -> Task:
    """A trained net goes on with Lion at a rate fit for SGD."""
    h = housing()
    net = fit(dense(8, 64, 64, 1, act=nn.GELU), mse_loss, h.x, h.y, 150)
    lr = {"written": 0.1, "twin": 3e-4, "corrected": 1e-3}[variant]
    return Task(
        Plain(net, mse_loss, lambda p: Lion(p, lr)),
        shuffled(h.x, h.y, seed=seed),
        explained(h.x_test, h.y_test),
    )
