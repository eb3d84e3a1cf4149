"""Sick runs whose losses take logarithms and quotients by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.fault_nets import Lit, classify, fit_to_data, mlp, pick, redraw, sgd, using


def softmax_by_hand(logits: Tensor, y: Tensor) -> Tensor:
    """Write the cross-entropy as the lecture does."""
    e = torch.exp(logits)
    p = e / e.sum(1, keepdim=True)
    return -torch.log(p[torch.arange(len(y)), y]).mean()


def clamped_nll(p: Tensor, y: Tensor) -> Tensor:
    """Clamp probabilities away from 0 and 1, so that where they are wrong and sure no gradient is left."""
    p = p.flatten().clamp(1e-6, 1 - 1e-6)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


@case(
    kind="sick",
    what="exp overflows in a softmax by hand",
    correction="initialisation by the data",
    steps=350,
    chance=0.1,
)
def log_of_softmax_by_hand(seed: int, variant: Variant) -> Task:
    """Digits of 0 to 16 and wide weights: a logit passes 88 in the first batch."""
    net, d = mlp([64, 100, 10]), data.digits()
    net = fit_to_data(net, d.x[:128]) if variant == "corrected" else redraw(net, lambda p: nn.init.normal_(p, 0, 0.3))
    loss = F.cross_entropy if variant == "twin" else softmax_by_hand
    return classify(net, d, using(torch.optim.Adam, 1e-3), seed, loss=loss)


@case(kind="sick", what="clamped probabilities of a saturated sigmoid", correction="lower rate", steps=400, chance=0.63)
def clamped_binary_cross_entropy(seed: int, variant: Variant) -> Task:
    """A sigmoid at the end, a clamp before the log, and a first step that saturates all of it."""
    d = data.cancer().standardized()
    model = nn.Sequential(mlp([30, 64, 64, 1]), nn.Sigmoid())
    lr = pick(variant, 3.0, 0.02, 0.01)
    module = Lit(model, clamped_nll, sgd(lr, 0.9))
    return Task(module, data.batches(d.x, d.y.float(), 32, seed), data.binary_accuracy(d.x_test, d.y_test, 0.5))


def gaussian_nll(out: Tensor, y: Tensor) -> Tensor:
    """Score a predicted mean and log-deviation without any floor."""
    mu, log_sigma = out[:, :1], out[:, 1:]
    return (log_sigma + 0.5 * ((y - mu) / log_sigma.exp()) ** 2).mean()


class MeanOnly(nn.Module):
    """Predict a mean and a log-deviation in training, the mean alone afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp([4, 64, 64, 2], nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net."""
        out: Tensor = self.net(x)
        return out if self.training else out[:, :1]


@case(kind="sick", what="Gaussian likelihood without a floor, Adam at 0.3", correction="lower rate", steps=600)
def likelihood_without_floor(seed: int, variant: Variant) -> Task:
    """The deviation shrinks in one step, the squared quotient explodes in the next."""
    d = data.waves()
    module = Lit(MeanOnly(), gaussian_nll, using(torch.optim.Adam, pick(variant, 0.3, 5e-3, 2e-3)))
    return Task(module, data.batches(d.x, d.y, 32, seed), data.explained(d.x_test, d.y_test))
