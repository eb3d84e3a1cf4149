"""Healthy runs whose loss grows for good reasons: adversaries, bootstrapped targets, growing weights, other stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

from benchmarks.wild._healthy import (
    Plain,
    accuracy,
    digits,
    loader,
    lr,
    mlp,
    r2,
    scored,
)
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.healthy_signs import Ordinary, Spread, ticks


def clouds(count: int) -> Tensor:
    """Draw points of a tilted cloud off the origin."""
    return torch.randn(count, 2) @ torch.tensor([[0.7, 0.3], [0.0, 0.2]]) + torch.tensor([2.0, -1.0])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Give the energy distance of two samples."""
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


class Rivals(Ordinary):
    """A generator and a discriminator with an optimizer each, stepped by hand."""

    def __init__(self, rate: float, critic: bool = False) -> None:
        super().__init__(rate)
        self.automatic_optimization = False
        self.make, self.judge, self.critic = mlp(4, 32, 2), mlp(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2)), critic
        self.average = mlp(4, 32, 2)
        self.average.load_state_dict(self.make.state_dict())

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Give the gradient penalty between true and made points."""
        between = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.judge(between).sum(), between, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Step the judge on true and made points, then the maker through the judge."""
        (real,) = batch
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.make(torch.randn(len(real), 4))
        true, made = self.judge(real), self.judge(fake.detach())
        loss = (
            made.mean() - true.mean() + 5 * self.penalty(real, fake.detach())
            if self.critic
            else F.softplus(-true).mean() + F.softplus(made).mean()
        )
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        loss = -self.judge(fake).mean() if self.critic else F.softplus(-self.judge(fake)).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.make.parameters(), strict=True):
                a.lerp_(p, 0.02)

    def configure_optimizers(self) -> Any:
        """Use Adam twice, with little momentum; the judge is the faster one."""
        return [
            Adam(self.judge.parameters(), 2 * self.rate, (0.5, 0.99)),
            Adam(self.make.parameters(), self.rate, (0.5, 0.99)),
        ]


def made_well() -> Any:
    """Score the averaged generator by the energy distance it saves against the origin."""
    real, z = clouds(500), torch.randn(500, 4)
    far = distance(torch.zeros(500, 2), real)
    return scored(lambda m: 1 - distance(m.average(z), real) / far)


@case(kind="healthy", what="two losses that chase each other, manual optimization", steps=700)
def gan_on_a_cloud(seed: int, variant: Variant) -> Task:
    """A plain GAN in the plane."""
    return Task(Rivals(lr(variant, 3e-3)), loader(seed, clouds(2000), size=64), made_well())


@case(kind="healthy", what="a critic without bounds whose loss changes its sign, and a double backward", steps=500)
def critic_with_gradient_penalty(seed: int, variant: Variant) -> Task:
    """A Wasserstein GAN with gradient penalty in the plane."""
    return Task(Rivals(lr(variant, 4e-3), critic=True), loader(seed, clouds(2000), size=64), made_well())


class Attacked(Plain):
    """A classifier trained on the worst of its inputs once it has warmed up."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """From step 120 on, move every pixel against the class by a growing amount."""
        x, y = batch
        size = min(0.1, max(0, self.global_step - 120) / 1000)
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(self(x), y), x)
        return self.loss(self((x + size * slope.sign()).detach()), y)


@case(kind="healthy", what="the loss turns and climbs as an attack grows", steps=400, chance=0.1, regime=True)
def digits_under_growing_attack(seed: int, variant: Variant) -> Task:
    """Adversarial training by the fast gradient sign."""
    data = digits()
    module = Attacked(mlp(64, 96, 10), F.cross_entropy, lambda p: SGD(p, lr(variant, 0.1), 0.9))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


class Chain(Ordinary):
    """Q-learning with a target net on a chain of eight places, payment at the far end."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net, self.target = mlp(8, 48, 2), mlp(8, 48, 2)
        self.target.load_state_dict(self.net.state_dict())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Fit random moves to the payment and the target net's best value; renew that net now and then."""
        if self.global_step % 20 == 0:
            self.target.load_state_dict(self.net.state_dict())
        place, move = torch.randint(0, 8, (64,)), torch.randint(0, 2, (64,))
        then = (place + 2 * move - 1).clamp(0, 7)
        paid = ((place == 7) & (move == 1)).float() * 5
        with torch.no_grad():
            goal = paid + 0.9 * self.target(F.one_hot(then, 8).float()).amax(1)
        guess = self.net(F.one_hot(place, 8).float())[torch.arange(64), move]
        return F.mse_loss(guess, goal)


@case(kind="healthy", what="targets that grow from 0 to 50 because of the net itself, losses with them", steps=800)
def chain_by_bootstrapped_targets(seed: int, variant: Variant) -> Task:
    """Deep Q-learning with a target that is renewed every twenty steps."""
    true = 50 * 0.9 ** torch.arange(7, -1, -1.0)
    return Task(Chain(lr(variant, 1e-2)), ticks(seed), scored(lambda m: r2(true, m.net(torch.eye(8)).amax(1))))


class Fenced(Ordinary):
    """A curve through given points that must not fall, under an ever dearer penalty."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net = mlp(1, 48, 48, 1, act=nn.Tanh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Add falls at random places, weighed from .1 to 100."""
        x, y = batch
        t = torch.rand(64, 1).requires_grad_()
        (slope,) = torch.autograd.grad(self.net(t).sum(), t, create_graph=True)
        weight = 0.1 * 10 ** min(3.0, self.global_step / 150)
        return F.mse_loss(self.net(x), y) + weight * F.relu(-slope).square().mean()


@case(kind="healthy", what="a penalty that grows a thousandfold over the run", steps=600)
def penalty_grows_a_thousandfold(seed: int, variant: Variant) -> Task:
    """Monotone regression by a penalty method."""
    x = torch.rand(1500, 1)
    true = torch.tanh(6 * x - 3) + x
    module = Fenced(lr(variant, 5e-3))
    return Task(
        module, loader(seed, x, true + 0.2 * torch.randn(1500, 1), size=64), scored(lambda m: r2(true, m.net(x)))
    )


class Staged(Spread):
    """Squared error of the mean for eight epochs, the Gaussian likelihood from then on."""

    optimizer, total = Adam, None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of the stage."""
        if self.current_epoch >= 8:
            return super().training_step(batch, batch_idx)
        return F.mse_loss(self.net(batch[0])[:, :1], batch[1])


@case(
    kind="healthy", what="the loss becomes another one at an epoch's start and turns negative", steps=600, regime=True
)
def squared_error_then_likelihood(seed: int, variant: Variant) -> Task:
    """Mean first, deviation later."""
    x = 4 * torch.rand(2000, 1) - 2
    mean, log_std = torch.sin(2 * x), -1.0 + 0.5 * x
    y = mean + log_std.exp() * torch.randn(2000, 1)
    score = scored(lambda m: (r2(mean, m.net(x)[:, :1]) + r2(log_std, m.net(x)[:, 1:] / 2)) / 2)
    return Task(Staged(lr(variant, 8e-3)), loader(seed, x, y), score)
