"""Healthy runs whose loss grows for good reasons: adversaries, bootstrapped targets, growing weights, changes of regime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.wild._healthy import (
    Data,
    Plain,
    accuracy,
    breast_cancer,
    diabetes,
    digits,
    fitted,
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


def made_well(seed: int) -> Any:
    """Score the averaged generator by the energy distance it saves against the origin."""
    real, z = clouds(500), torch.randn(500, 4)
    far = distance(torch.zeros(500, 2), real)
    return scored(lambda m: 1 - distance(m.average(z), real) / far)


@case(kind="healthy", what="two losses that chase each other, manual optimization", steps=700)
def gan_on_a_cloud(seed: int, variant: Variant) -> Task:
    """A plain GAN in the plane."""
    return Task(Rivals(lr(variant, 3e-3)), loader(seed, clouds(2000), size=64), made_well(seed))


@case(kind="healthy", what="a critic without bounds whose loss changes its sign, and a double backward", steps=500)
def critic_with_gradient_penalty(seed: int, variant: Variant) -> Task:
    """A Wasserstein GAN with gradient penalty in the plane."""
    return Task(Rivals(lr(variant, 4e-3), critic=True), loader(seed, clouds(2000), size=64), made_well(seed))


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
