"""Sick runs whose activations or residual terms explode inside the net."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, dense, explained, shuffled
from benchmarks.zoo.data import digits, housing


class Cube(nn.Module):
    """The third power."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the third power."""
        return x**3


@case(
    kind="sick",
    what="a home-made cubic activation between layers with a generous start",
    correction="the activation swapped for tanh",
    steps=300,
    chance=0.0,
)
def cubic_activation(seed: int, variant: Variant) -> Task:
    """A home-made cubic activation between layers with a generous start."""
    h = housing()
    net = dense(8, 64, 64, 64, 1, act={"written": Cube, "twin": nn.ReLU, "corrected": nn.Tanh}[variant])
    for layer in (m for m in net if isinstance(m, nn.Linear)):
        nn.init.xavier_normal_(layer.weight, 1.5)
    module = Plain(net, mse_loss, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9))
    return Task(module, shuffled(h.x, h.y, seed=seed), explained(h.x_test, h.y_test))


class Branches(nn.Module):
    """Residual blocks without a norm: each adds two linear layers to its input."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(count)
        )
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches."""
        for block in self.blocks:
            x = x + block(x)
        return x


@case(
    kind="sick",
    what="sixteen residual blocks without a norm, whose branches add up to activations of a million",
    correction="data-dependent initialisation: the last layer of every branch scaled for branches of a tenth",
    steps=250,
    chance=0.1,
)
def residual_branches_add_up(seed: int, variant: Variant) -> Task:
    """Sixteen residual blocks without a norm, whose branches add up to activations of a million."""
    d = digits()
    trunk = Branches(32, 16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), trunk, nn.Linear(32, 10))
    if variant == "twin":
        for block in trunk.blocks:
            nn.init.zeros_(block[-1].weight)  # type: ignore[index]
    elif variant == "corrected":
        with torch.no_grad():
            x = net[:2](d.x[:256])
            for block in trunk.blocks:
                block[-1].weight.mul_(0.1 * x.std() / block(x).std())  # type: ignore[index]
                x = x + block(x)
    module = Plain(net, cross_entropy, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9))
    return Task(module, shuffled(d.x, d.y, seed=seed), accuracy(d.x_test, d.y_test))


class Pendulum(LightningModule):
    """A physics-informed net for a damped oscillation: u'' + 0.4 u' + 4 u = 0, u(0) = 1, u'(0) = 0."""

    def __init__(self, optimizer: Any, weight: float) -> None:
        super().__init__()
        self.net, self.optimizer, self.weight = dense(1, 32, 32, 1, act=nn.Tanh), optimizer, weight

    def forward(self, t: Tensor) -> Tensor:
        """Give the position at a time."""
        out: Tensor = self.net(t)
        return out

    def residual(self, t: Tensor) -> Tensor:
        """Compute by how much the equation is missed."""
        t = t.requires_grad_()
        u = self(t)
        (v,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (a,) = torch.autograd.grad(v.sum(), t, create_graph=True)
        return a + 0.4 * v + 4 * u

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Add the equation's residual to the misfit of a few measured points."""
        (t,) = batch
        seen = torch.linspace(0, 3, 12)[:, None]
        return self.weight * (self.residual(t).square().mean() * 0.02 + mse_loss(self(seen), oscillation(seen)))

    def configure_optimizers(self) -> Any:
        """Make the optimizer."""
        return self.optimizer(self.parameters())


def oscillation(t: Tensor) -> Tensor:
    """Solve the pendulum's equation."""
    w = 3.96**0.5
    return torch.exp(-0.2 * t) * (torch.cos(w * t) + 0.2 / w * torch.sin(w * t))


@case(
    kind="sick",
    what="the residual of a physics-informed net is written in millimetres: its square is a million times larger",
    correction="a lower learning rate",
    steps=600,
    chance=0.0,
)
def physics_loss_in_millimetres(seed: int, variant: Variant) -> Task:
    """The residual of a physics-informed net is written in millimetres: its square is a million times larger."""
    weight, lr = (1.0 if variant == "twin" else 1e6), (5e-8 if variant == "corrected" else 0.05)
    module = Pendulum(lambda p: torch.optim.SGD(p, lr, momentum=0.9), weight)
    t = torch.linspace(0, 3, 201)[1:, None]
    return Task(module, shuffled(t, seed=seed, size=50), explained(t, oscillation(t)))


class Flowing(nn.Module):
    """A net whose state flows along a learned field, with steps of Euler's rule."""

    def __init__(self, gain: float, power: int) -> None:
        super().__init__()
        self.lift, self.field, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        self.power = power
        nn.init.xavier_normal_(self.field.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Let the state flow for ten steps."""
        x = self.lift(x)
        for _ in range(10):
            x = x + 0.1 * self.field(x).relu() ** self.power
        out: Tensor = self.head(x)
        return out


@case(
    kind="sick",
    what="the field of a neural differential equation is a square: large states run away in finite time",
    correction="the field initialised anew, ten times smaller",
    steps=300,
    chance=0.0,
)
def squared_field_runs_away(seed: int, variant: Variant) -> Task:
    """The field of a neural differential equation is a square: large states run away in finite time."""
    h = housing()
    net = Flowing(0.2 if variant == "corrected" else 2.0, 1 if variant == "twin" else 2)
    module = Plain(net, huber_loss, lambda p: torch.optim.Adam(p, 3e-3))
    return Task(module, shuffled(h.x, h.y, seed=seed), explained(h.x_test, h.y_test))
