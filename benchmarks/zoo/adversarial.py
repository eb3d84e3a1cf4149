"""Two optimizers under manual optimization: a GAN, and an encoder with a head of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.zoo.case import (
    Event,
    Learner,
    OptimizerFactory,
    Task,
    accuracy,
    adam,
    case,
    cross_entropy,
    fill,
    foreign,
    sgd,
    when,
)
from benchmarks.zoo.corrupt_state import overwrite
from benchmarks.zoo.data import Batches, digits, loader
from benchmarks.zoo.initialisation import enlarge
from benchmarks.zoo.models import mlp

CAUSE = "two optimizers"
MIXING = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
MEAN = torch.tensor([2.0, -1.0])


class Pair(Learner):
    """An encoder and a head, each with its own optimizer, on one loss."""

    def __init__(self, rates: tuple[OptimizerFactory, OptimizerFactory], events: Mapping[int, Event] | None) -> None:
        super().__init__(nn.ModuleDict(), cross_entropy, rates[0], events=events)
        self.net = nn.Sequential()
        self.net.add_module("encoder", mlp((64, 64, 48)))
        self.net.add_module("head", mlp((48, 32, 10)))
        self.rates = rates
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Step both optimizers on the same gradients."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        loss = self.loss(self(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": loss.detach()}

    def configure_optimizers(self) -> Any:
        """Give one optimizer to each part."""
        parts = (self.net.get_submodule("encoder"), self.net.get_submodule("head"))
        return [make(part.parameters()) for make, part in zip(self.rates, parts, strict=True)]


class Gan(Learner):
    """A GAN (Goodfellow et al., 2014) that learns a correlated Gaussian in the plane."""

    def __init__(
        self, rates: tuple[OptimizerFactory, OptimizerFactory], events: Mapping[int, Event] | None = None
    ) -> None:
        super().__init__(mlp((2, 32, 32, 2)), cross_entropy, rates[0], events=events)
        self.critic = mlp((2, 32, 32, 1), nn.LeakyReLU)
        self.rates = rates
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Step the critic, then the generator."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        real, noise = batch
        softplus = nn.functional.softplus
        loss = softplus(-self.critic(real)).mean() + softplus(self.critic(self.net(noise).detach())).mean()
        # A zero-centred penalty on real data makes GANs converge (Mescheder et al., 2018).
        point = real.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(point).sum(), point, create_graph=True)
        self._step(optimizers[0], loss + 0.3 * slope.square().sum(1).mean())
        deceit = softplus(-self.critic(self.net(noise))).mean()
        self._step(optimizers[1], deceit)
        return {"loss": loss.detach()}

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        """Give the critic the first optimizer, the generator the second."""
        return [self.rates[0](self.critic.parameters()), self.rates[1](self.net.parameters())]


@torch.no_grad()
def closeness(module: LightningModule) -> float:
    """Score a generator: 1 − the error of its mean and covariance against that of an untrained guess at the origin."""
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    fake = module(noise)
    covariance = MIXING @ MIXING.T
    error = (fake.mean(0) - MEAN).norm() / MEAN.norm() + (fake.T.cov() - covariance).norm() / covariance.norm()
    score = 1 - float(error) / 2
    return score if score > 0 else 0.0


def gan(
    seed: int,
    rates: tuple[OptimizerFactory, OptimizerFactory],
    corrupt: Mapping[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] | None = None,
    events: Mapping[int, Event] | None = None,
) -> Task:
    """Make a GAN run: real points and noise come from the data."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(4096, 2, generator=generator) @ MIXING.T + MEAN
    noise = torch.randn(4096, 2, generator=generator)
    return Task(Gan(rates, events), loader(Batches(real, noise, 64, seed, corrupt)), closeness)


def pair(
    seed: int,
    rates: tuple[OptimizerFactory, OptimizerFactory],
    corrupt: Mapping[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] | None = None,
    events: Mapping[int, Event] | None = None,
) -> Task:
    """Make an encoder-and-head run on the digits."""
    split = digits()
    batches = Batches(split.x, split.y, 32, seed, corrupt)
    return Task(Pair(rates, events), loader(batches), accuracy(split))


@case(cause=CAUSE, form="cold-start", architecture="GAN", optimizer="Adam", chance=0.0, steps=1400)
def gan_critic_rate_1000x(seed: int, sick: bool) -> Task:
    """The critic learns at a thousand times the generator's rate, and drowns it."""
    return gan(seed, (adam(2.0 if sick else 2e-3, betas=(0.5, 0.99)), adam(2e-3, betas=(0.5, 0.99))))


@case(cause=CAUSE, form="cold-start", architecture="GAN", optimizer="Adam", culprit=["net.fc2"], chance=0.0, steps=1400)
def gan_generator_layer_1e4(seed: int, sick: bool) -> Task:
    """A generator layer starts 10⁴ times too large: its fakes lie far from anything real."""
    task = gan(seed, (adam(2e-3, betas=(0.5, 0.99)), adam(2e-3, betas=(0.5, 0.99))))
    if sick:
        enlarge(task.module, "net.fc2", 1e4)
    return task


@case(cause=CAUSE, form="non-finite", architecture="GAN", optimizer="Adam", chance=0.0, steps=1400)
def gan_nan_batch(seed: int, sick: bool) -> Task:
    """One real point is NaN: the critic falls first, the generator with it."""
    rates = (adam(2e-3, betas=(0.5, 0.99)), adam(2e-3, betas=(0.5, 0.99)))
    return gan(seed, rates, corrupt=when(sick, {500: fill(float("nan"))}))


@case(cause=CAUSE, form="sudden", architecture="encoder and head", optimizer="SGD", steps=600)
def pair_batches_scaled(seed: int, sick: bool) -> Task:
    """Two batches of another data set hit an encoder under SGD and a head under Adam."""
    return pair(seed, (sgd(0.02), adam(3e-3)), corrupt=when(sick, {520: foreign(1e4), 521: foreign(1e4)}))


@case(
    cause=CAUSE,
    form="sudden",
    architecture="encoder and head",
    optimizer="SGD",
    culprit=["net.encoder.fc2"],
    steps=600,
)
def pair_encoder_overwritten(seed: int, sick: bool) -> Task:
    """A layer of the encoder is overwritten; both optimizers see the consequences."""
    events = when(sick, {230: overwrite("net.encoder.fc2", 300.0)})
    return pair(seed, (sgd(0.02), sgd(0.02)), events=events)
