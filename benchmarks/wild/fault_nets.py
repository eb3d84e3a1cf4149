"""Nets and training programs that the sick runs share, and how their authors or a remedy initialise them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)
Optimize = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]


def pick(variant: Variant, written: T, twin: T, corrected: T) -> T:
    """Choose what a variant is given."""
    return {"written": written, "twin": twin, "corrected": corrected}.get(variant, written)


class Lit(LightningModule):
    """A model, a loss and an optimizer, as in the first page of the manual."""

    def __init__(self, model: nn.Module, loss: Loss, optimize: Optimize) -> None:
        super().__init__()
        self.model, self.loss, self.optimize = model, loss, optimize

    def forward(self, x: Tensor) -> Tensor:
        """Apply the model."""
        out: Tensor = self.model(x)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        """Make the optimizer."""
        return self.optimize(self.parameters())


def classify(
    net: nn.Module, d: data.Parts, optimize: Optimize, seed: int, size: int = 32, loss: Loss = F.cross_entropy
) -> Task:
    """Make a classification run."""
    return Task(Lit(net, loss, optimize), data.batches(d.x, d.y, size, seed), data.accuracy(d.x_test, d.y_test))


def regress(
    net: nn.Module, d: data.Parts, optimize: Optimize, seed: int, size: int = 32, loss: Loss = F.mse_loss
) -> Task:
    """Make a regression run."""
    return Task(Lit(net, loss, optimize), data.batches(d.x, d.y, size, seed), data.explained(d.x_test, d.y_test))


def sgd(lr: float, momentum: float = 0.0, **options: Any) -> Optimize:
    """Make plain SGD, or SGD with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum, **options)


def using(kind: Callable[..., torch.optim.Optimizer], lr: float, **options: Any) -> Optimize:
    """Make any optimizer of torch."""
    return lambda parameters: kind(parameters, lr=lr, **options)


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Stack linear layers as torch initialises them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def redraw(net: N, draw: Callable[[Tensor], Any], biases: bool = False) -> N:
    """Draw all weight matrices and kernels anew; biases become zero, or are drawn as well."""
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1 or biases:
                draw(p)
            else:
                nn.init.zeros_(p)
    return net


def he(net: N) -> N:
    """Redraw a net by He et al. (2015), the last layer small."""
    redraw(net, lambda p: nn.init.kaiming_normal_(p, nonlinearity="relu"))
    with torch.no_grad():
        [p for p in net.parameters() if p.dim() > 1][-1].mul_(0.3)
    return net


def orthogonal(net: N, gain: float = 1.0) -> N:
    """Redraw a net with orthogonal matrices."""
    return redraw(net, lambda p: nn.init.orthogonal_(p, gain))


@torch.no_grad()
def fit_to_data(net: nn.Sequential, x: Tensor, inputs: bool = False) -> nn.Sequential:
    """Redraw by He and scale every layer so that its outputs on a batch have mean 0 and deviation 1.

    After Krähenbühl et al. (2016). With ``inputs``, the first layer's columns are divided by the deviation of what they
    multiply.
    """
    he(net)
    for i, layer in enumerate(net):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            if inputs and i == 0:
                layer.weight.div_(x.std(0) + 1e-6)
            out = layer(x).flatten(2).transpose(1, 2).flatten(0, 1) if isinstance(layer, nn.Conv2d) else layer(x)
            deviation = out.std(0).clamp(min=1e-6)
            layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.copy_(-out.mean(0) / deviation)  # type: ignore[union-attr]
        x = layer(x)
    return net
