"""Healthy regressions: raw targets, raw features, heavy tails, counts, claims, quantiles, and unusual optimizers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, NAdam, RAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.wild._healthy import Data, Plain, accuracy, diabetes, digits, fitted, loader, lr, mlp, r2, scored, split
from benchmarks.wild.case import Task, Variant, case


def law(count: int, features: int, noise: float = 0.1) -> Data:
    """Draw a smooth non-linear law with a little noise; the target is a column of size one."""
    x, w = torch.randn(count + 300, features), F.normalize(torch.randn(features, 1), dim=0)
    y = torch.sin(1.5 * x @ w) + 0.5 * x[:, :1] * x[:, 1:2] + 0.7 * x[:, 2:3]
    y[:count] += noise * torch.randn(count, 1)
    return Data(x[:count], y[:count], x[count:], y[count:])


def line(count: int, features: int) -> Data:
    """Draw a noise-free linear law."""
    x, w = torch.randn(count + 300, features), torch.randn(features, 1)
    return Data(x[:count], x[:count] @ w, x[count:], x[count:] @ w)


@case(kind="healthy", what="Adam at rate 1; losses of 29,000 that fall to 3,000", steps=500)
def diabetes_by_adam_at_rate_one(seed: int, variant: Variant) -> Task:
    """A linear model of the raw disease score."""
    data = diabetes()
    module = Plain(nn.Linear(10, 1), F.mse_loss, lambda p: Adam(p, lr(variant, 1.0)))
    return Task(module, loader(seed, data.x, data.y), fitted(data))


@case(kind="healthy", what="gradients of thousands at first, raw targets of 25 to 346", steps=600)
def diabetes_mlp_on_raw_target(seed: int, variant: Variant) -> Task:
    """A small MLP of the raw disease score with weight decay."""
    data = diabetes()
    module = Plain(mlp(10, 16, 1), F.mse_loss, lambda p: torch.optim.AdamW(p, lr(variant, 1e-2), weight_decay=0.1))
    return Task(module, loader(seed, data.x, data.y), fitted(data))


@case(kind="healthy", what="targets in the thousands: losses of 1e7, which SGD takes at a usual rate", steps=400)
def rents_in_thousands(seed: int, variant: Variant) -> Task:
    """A linear model of rents by momentum SGD."""
    data = line(1000, 8)
    data = data._replace(y=3000 + 800 * data.y, y_test=3000 + 800 * data.y_test)
    module = Plain(nn.Linear(8, 1), F.mse_loss, lambda p: SGD(p, lr(variant, 5e-3), 0.9))
    return Task(module, loader(seed, data.x, data.y), fitted(data))


@case(
    kind="healthy", what="unscaled features up to 1,700 that Adam at a small rate puts up with", steps=800, chance=0.4
)
def wines_without_scaling(seed: int, variant: Variant) -> Task:
    """An MLP on the raw wine features, batches of eight."""
    raw = datasets.load_wine()
    data = split(raw.data, raw.target, 60, torch.long)
    module = Plain(mlp(13, 32, 3), F.cross_entropy, lambda p: Adam(p, lr(variant, 1e-3)))
    return Task(module, loader(seed, data.x, data.y, size=8), accuracy(data, 0.4))


@case(kind="healthy", what="features of size 300 and a rate of 3e-6 that suits them", steps=400)
def sensors_in_raw_units(seed: int, variant: Variant) -> Task:
    """Linear regression by SGD on sensor counts."""
    data = line(1200, 5)
    data = data._replace(x=300 * data.x, x_test=300 * data.x_test, y=40 * data.y, y_test=40 * data.y_test)
    module = Plain(nn.Linear(5, 1), F.mse_loss, lambda p: SGD(p, lr(variant, 1e-6)))
    return Task(module, loader(seed, data.x, data.y, size=16), fitted(data))


@case(
    kind="healthy", what="one row a batch under Student noise: some losses are thousands of times the median", steps=800
)
def student_noise_one_by_one(seed: int, variant: Variant) -> Task:
    """Online least squares, batch size one, a cosine decay to zero."""
    data = line(900, 4)
    noise = torch.distributions.StudentT(2.1).sample(data.y.shape)
    module = Plain(
        nn.Linear(4, 1), F.mse_loss, lambda p: SGD(p, lr(variant, 1e-2)), lambda o: CosineAnnealingLR(o, 800)
    )
    return Task(module, loader(seed, data.x, data.y + 0.5 * noise, size=1), fitted(data))


@case(kind="healthy", what="pairs of rows under Cauchy noise; losses without a mean", steps=800)
def cauchy_noise_in_pairs(seed: int, variant: Variant) -> Task:
    """Huber regression by an MLP, batch size two."""
    data = law(1600, 5, 0.0)
    noise = torch.distributions.Cauchy(0.0, 0.05).sample(data.y.shape)
    module = Plain(
        mlp(5, 32, 32, 1), nn.HuberLoss(), lambda p: NAdam(p, lr(variant, 5e-3)), lambda o: CosineAnnealingLR(o, 800)
    )
    return Task(module, loader(seed, data.x, data.y + noise, size=2), fitted(data))


@case(kind="healthy", what="one target in twenty is wrong by a factor of a hundred", steps=500)
def gross_outliers_under_l1(seed: int, variant: Variant) -> Task:
    """Smooth L1 on targets with gross errors."""
    data = law(2000, 6)
    wrong = torch.where(torch.rand(2000, 1) < 0.05, 100.0, 1.0)
    module = Plain(
        mlp(6, 48, 48, 1), F.smooth_l1_loss, lambda p: Adam(p, lr(variant, 1e-2)), lambda o: CosineAnnealingLR(o, 500)
    )
    return Task(module, loader(seed, data.x, data.y * wrong), fitted(data))


@case(kind="healthy", what="a pinball loss whose gradient never shrinks", steps=500)
def quantiles_of_delivery_times(seed: int, variant: Variant) -> Task:
    """Three quantiles of an exponential delay at once, in hours."""
    x, levels = torch.rand(2500, 2), torch.tensor([0.1, 0.5, 0.9])
    mean = 1 + 3 * x[:, :1] * x[:, 1:]
    y, true = mean * torch.empty(2500, 1).exponential_(), -mean * torch.log(1 - levels)

    def pinball(guess: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(levels * (y - guess), (levels - 1) * (y - guess)).mean()

    module = Plain(mlp(2, 32, 3), pinball, lambda p: RAdam(p, lr(variant, 8e-2)), lambda o: CosineAnnealingLR(o, 500))
    score = scored(lambda m: 1 - (m(x) - true).abs().sum() / (true - true.mean(0)).abs().sum())
    return Task(module, loader(seed, x, y, size=64), score)


@case(kind="healthy", what="an exponential link on counts up to hundreds; the loss falls far below zero", steps=500)
def bike_counts_by_poisson(seed: int, variant: Variant) -> Task:
    """Poisson regression of hourly counts, log link, the constant left out."""
    x = torch.rand(2600, 3)
    rate = torch.exp(3.5 + torch.sin(6.3 * x[:, :1]) + x[:, 1:2] - 0.5 * x[:, 2:])
    y = torch.poisson(rate)
    module = Plain(mlp(3, 48, 1), nn.PoissonNLLLoss(), lambda p: Adam(p, lr(variant, 3e-2)))
    score = scored(lambda m: r2(rate[2000:].log(), m(x[2000:])))
    return Task(module, loader(seed, x[:2000], y[:2000]), score)


@case(kind="healthy", what="nine claims in ten are zero and the rest spread over four powers of ten", steps=600)
def insurance_claims_by_tweedie(seed: int, variant: Variant) -> Task:
    """Tweedie deviance of power 1.5 on a compound Poisson-gamma law."""
    x = torch.rand(3000, 4)
    frequency = torch.exp(-3 + 2 * x[:, :1] + x[:, 1:2])
    y = torch.poisson(frequency) * torch.exp(1 + torch.randn(3000, 1))

    def tweedie(log: Tensor, y: Tensor) -> Tensor:
        return (2 * y * torch.exp(-0.5 * log) + 2 * torch.exp(0.5 * log)).mean()

    module = Plain(nn.Linear(4, 1), tweedie, lambda p: Adam(p, lr(variant, 8e-2)), lambda o: CosineAnnealingLR(o, 600))
    return Task(module, loader(seed, x, y, size=64), scored(lambda m: r2(frequency.log(), m(x) - 1.5)))


@case(kind="healthy", what="several evaluations a step, each with another loss", steps=150)
def digits_ink_by_lbfgs(seed: int, variant: Variant) -> Task:
    """Full-batch LBFGS with a line search on the column sums of digits."""
    data = digits()
    data = Data(
        data.x[:600], data.x[:600].view(-1, 8, 8).sum(1).tanh(), data.x_test, data.x_test.view(-1, 8, 8).sum(1).tanh()
    )
    module = Plain(
        mlp(64, 16, 8, act=nn.Tanh), F.mse_loss, lambda p: LBFGS(p, lr(variant, 1.0), 2, line_search_fn="strong_wolfe")
    )
    return Task(module, loader(seed, data.x, data.y, size=600), fitted(data))


@case(kind="healthy", what="Rprop's steps ignore the size of gradients of thousands", steps=200)
def diabetes_full_batch_rprop(seed: int, variant: Variant) -> Task:
    """A linear model of the raw disease score by full-batch Rprop."""
    data = diabetes()
    module = Plain(nn.Linear(10, 1), F.mse_loss, lambda p: Rprop(p, lr(variant, 0.5)))
    return Task(module, loader(seed, data.x, data.y, size=322), fitted(data))


@case(kind="healthy", what="Adagrad at rate 1: a large first step, ever smaller ones later", steps=400)
def rows_by_adagrad_at_rate_one(seed: int, variant: Variant) -> Task:
    """A linear law of size ten learned by Adagrad."""
    data = line(800, 12)
    module = Plain(nn.Linear(12, 1), F.mse_loss, lambda p: Adagrad(p, lr(variant, 1.0)))
    return Task(module, loader(seed, data.x, 5 * data.y), fitted(Data(data.x, data.y, data.x_test, 5 * data.y_test)))


@case(kind="healthy", what="Adadelta at rate 1, whose steps grow from nothing", steps=600)
def smooth_law_by_adadelta(seed: int, variant: Variant) -> Task:
    """An MLP on a smooth law by Adadelta."""
    data = law(2000, 4)
    module = Plain(mlp(4, 64, 64, 1), F.mse_loss, lambda p: Adadelta(p, lr(variant, 3.0)))
    return Task(module, loader(seed, data.x, data.y), fitted(data))


class Oscillator(LightningModule):
    """A net for ``u'' = -4 u`` with ``u(0) = 0`` and ``u'(0) = 2``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.net, self.rate = mlp(1, 32, 32, 1, act=nn.Tanh), rate

    def forward(self, t: Tensor) -> Tensor:
        """Give the displacement."""
        out: Tensor = self.net(t)
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sum the residual of the law at random times and of the two conditions at zero."""
        t = torch.cat([torch.zeros(1, 1), batch[0]]).requires_grad_()
        u = self(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
        return (ddu + 4 * u).square().mean() + 10 * u[0].square().sum() + 10 * (du[0] - 2).square().sum()

    def configure_optimizers(self) -> Any:
        """Use Adam."""
        optimizer = Adam(self.parameters(), self.rate)
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, 700), "interval": "step"}]


@case(kind="healthy", what="second derivatives in the loss, a stiff mixture of terms", steps=700)
def oscillator_by_physics_informed_net(seed: int, variant: Variant) -> Task:
    """A physics-informed net for a harmonic oscillator."""
    t = torch.linspace(0, 3, 200)[:, None]
    return Task(
        Oscillator(lr(variant, 1e-2)),
        loader(seed, 3 * torch.rand(1024, 1), size=64),
        scored(lambda m: r2((2 * t).sin(), m(t))),
    )


@case(kind="healthy", what="the rate climbs all along and the gradient noise with it", steps=400)
def rate_ramps_up_to_the_end(seed: int, variant: Variant) -> Task:
    """A linear ramp of the rate over the whole run, RMSprop on a smooth law."""
    data = law(2000, 4)
    module = Plain(
        mlp(4, 48, 1),
        F.mse_loss,
        lambda p: RMSprop(p, lr(variant, 1e-2)),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.01, 1.0, 400),
    )
    return Task(module, loader(seed, data.x, data.y, size=64), fitted(data))
