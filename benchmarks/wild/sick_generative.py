"""Sick runs of autoencoders, densities and adversarial nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, dense, explained, shuffled
from benchmarks.zoo.data import digits, housing


class Variational(LightningModule):
    """A variational autoencoder of raw 8x8 images with values from 0 to 16."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.lr = dense(64, 64, 32), dense(16, 64, 64), lr

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode without noise."""
        out: Tensor = self.decoder(self.encoder(x)[:, :16])
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum the squared error over the pixels and add the divergence."""
        (x,) = batch
        mean, spread = self.encoder(x).chunk(2, 1)
        z = mean + spread.exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + (2 * spread).exp() - 2 * spread - 1).sum(1)
        return ((self.decoder(z) - x).square().sum(1) + divergence).mean()

    def configure_optimizers(self) -> Any:
        """Make Adamax."""
        return torch.optim.Adamax(self.parameters(), self.lr)


@case(
    kind="sick",
    what="a VAE of raw pixels, summed loss, spread without a bound, rate of 0.5",
    correction="a lower learning rate",
    steps=400,
    chance=0.0,
)
def vae_of_raw_pixels(seed: int, variant: Variant) -> Task:
    """A VAE of raw pixels, summed loss, spread without a bound, rate of 0.5."""
    d = digits()
    x, test = (d.x + 1).flatten(1) * 8, (d.x_test + 1).flatten(1) * 8
    module = Variational({"written": 0.5, "twin": 1e-2, "corrected": 1e-2}[variant])
    return Task(module, shuffled(x, seed=seed), explained(test, test))


class MeanOnly(nn.Module):
    """The first answer of a net, for scoring."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Give the mean."""
        out: Tensor = self.net(x)[:, :1]
        return out


@case(
    kind="sick",
    what="Gaussian likelihood with a log-variance that nothing bounds: the better the fit, the larger the gradients",
    correction="gradients clipped to a norm of 0.3",
    steps=400,
    chance=0.0,
)
def log_variance_without_bound(seed: int, variant: Variant) -> Task:
    """Gaussian likelihood with a log-variance that nothing bounds: the better the fit, the larger the gradients."""
    h = housing()

    def likelihood(out: Tensor, y: Tensor) -> Tensor:
        mean, log = out.chunk(2, 1)
        log = log.clamp(min=-2) if variant == "twin" else log
        return (0.5 * log + 0.5 * (y - mean).square() / log.exp()).mean()

    clip = 0.3 if variant == "corrected" else None
    lr = 0.02 if variant == "twin" else 0.12
    module = Plain(dense(8, 64, 64, 2), likelihood, lambda p: torch.optim.SGD(p, lr, momentum=0.9), clip=clip)
    score = explained(h.x_test, h.y_test)
    return Task(module, shuffled(h.x, h.y, seed=seed), lambda m: score(MeanOnly(m)))


class Flow(LightningModule):
    """Affine coupling layers (Dinh et al., 2017) over two dimensions."""

    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(dense(1, 32, 32, 2, act=nn.LeakyReLU) for _ in range(6))
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        """Compute the negative log-likelihood of points."""
        total = torch.zeros(len(x))
        for part in self.parts:
            a, b = x.chunk(2, 1)
            log, shift = part(a).chunk(2, 1)
            x, total = torch.cat([b * log.exp() + shift, a], 1), total + log[:, 0]
        return 0.5 * x.square().sum(1) + 1.8379 - total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the mean negative log-likelihood."""
        return self(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        """Make the optimizer."""
        return self.optimizer(self.parameters())


@torch.no_grad()
def likelier(module: nn.Module) -> float:
    """Score by how much likelier two fresh moons are than under the normal distribution, not below 0."""
    score = 2.84 - float(module.eval()(moons(1)).mean())
    return score if 0 < score < 10 else 0.0


def moons(seed: int) -> Tensor:
    """Generate two moons, standardised."""
    x = torch.tensor(make_moons(2000, noise=0.06, random_state=seed)[0], dtype=torch.float32)
    return (x - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


@case(
    kind="sick",
    what="a normalising flow whose scales are exponentials without a bound, with Adam at 0.1",
    correction="a lower learning rate",
    steps=300,
    chance=0.0,
)
def flow_with_unbounded_scales(seed: int, variant: Variant) -> Task:
    """A normalising flow whose scales are exponentials without a bound, with Adam at 0.1."""
    lr = {"written": 0.1, "twin": 0.003, "corrected": 0.005}[variant]
    module = Flow(lambda p: torch.optim.Adam(p, lr))
    return Task(module, shuffled(moons(0), seed=seed, size=128), likelier)


class Adversaries(LightningModule):
    """A generator and a critic with an optimizer each, stepped by hand."""

    def __init__(self, lr: float, critic_lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = dense(2, 32, 32, 2), dense(2, 32, 32, 1, act=nn.LeakyReLU)
        self.lr, self.critic_lr = lr, critic_lr

    def forward(self, z: Tensor) -> Tensor:
        """Generate points."""
        out: Tensor = self.generator(z)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Step the critic, then the generator."""
        (x,) = batch
        first, second = self.optimizers()  # type: ignore[misc]
        fake, one, zero = self(torch.randn(len(x), 2)), torch.ones(len(x), 1), torch.zeros(len(x), 1)
        second.zero_grad()
        loss = binary_cross_entropy_with_logits(self.critic(x), one)
        self.manual_backward(loss + binary_cross_entropy_with_logits(self.critic(fake.detach()), zero))
        second.step()
        first.zero_grad()
        self.manual_backward(binary_cross_entropy_with_logits(self.critic(fake), one))
        first.step()

    def configure_optimizers(self) -> Any:
        """Make two optimizers."""
        first = torch.optim.Adam(self.generator.parameters(), self.lr, (0.5, 0.99))
        return first, torch.optim.Adam(self.critic.parameters(), self.critic_lr, (0.5, 0.99))


def cloud(seed: int) -> Tensor:
    """Generate a tilted cloud of points away from the origin."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2000, 2, generator=g) @ torch.tensor([[0.8, 0.4], [0.0, 0.5]]) + torch.tensor([2.0, -1.5])


@torch.no_grad()
def alike(module: nn.Module) -> float:
    """Score by one minus the energy distance of generated and true points, relative to the noise's, at least 0."""
    z, x = torch.randn(500, 2, generator=torch.Generator().manual_seed(9)), cloud(5)[:500]

    def distance(a: Tensor) -> float:
        return float(2 * torch.cdist(a, x).mean() - torch.cdist(a, a).mean() - torch.cdist(x, x).mean())

    made = module.eval()(z)
    score = 1 - distance(made) / distance(z) if made.isfinite().all() else 0.0
    return score if score > 0 else 0.0


@case(
    kind="sick",
    what="of the two optimizers of a GAN the critic's has a rate of 5",
    correction="a lower learning rate of that optimizer",
    steps=800,
    chance=0.0,
)
def critic_far_too_fast(seed: int, variant: Variant) -> Task:
    """Of the two optimizers of a GAN the critic's has a rate of 5."""
    module = Adversaries(1e-3, {"written": 5.0, "twin": 3e-3, "corrected": 2e-3}[variant])
    return Task(module, shuffled(cloud(0), seed=seed, size=64), alike)


@case(
    kind="sick",
    what="the squared error of an autoencoder is summed over pixels and batch, and two batches are accumulated",
    correction="a lower learning rate",
    steps=250,
    chance=0.0,
    trainer=lambda: {"accumulate_grad_batches": 2},
)
def autoencoder_with_summed_error(seed: int, variant: Variant) -> Task:
    """The squared error of an autoencoder is summed over pixels and batch, and two batches are accumulated."""
    d = digits()
    squeeze = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    widen = [nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2)]
    factor, lr = (6.0 if variant == "twin" else 16 * 64.0), (2.5e-4 if variant == "corrected" else 0.05)
    module = Plain(
        nn.Sequential(*squeeze, *widen),
        lambda z, y: factor * mse_loss(z, y),
        lambda p: torch.optim.SGD(p, lr, momentum=0.9),
    )
    return Task(module, shuffled(d.x, d.x, seed=seed, size=16), explained(d.x_test, d.x_test))
