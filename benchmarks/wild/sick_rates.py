"""Sick runs at thirty to some hundred times the rate that their optimizer bears."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.fault_nets import classify, he, mlp, pick, regress, sgd, using

LOWER = "lower rate"


class RowReader(nn.Module):
    """Read a digit row by row with a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Give class logits from the last state."""
        states, _ = self.gru(x.view(-1, 8, 8))
        out: Tensor = self.head(states[:, -1])
        return out


def small_cnn() -> nn.Sequential:
    """Two convolutions and a linear layer for digits."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip


@case(kind="sick", what="SGD at thirty times its rate", correction=LOWER, steps=400)
def sgd_thirty_times(seed: int, variant: Variant) -> Task:
    """A regression by plain SGD at 1.5."""
    return regress(he(mlp([4, 64, 64, 1])), data.waves(), sgd(pick(variant, 1.5, 0.05, 0.03)), seed)


@case(kind="sick", what="momentum 0.99 at a rate fit for none", correction=LOWER, steps=400, chance=0.1)
def heavy_momentum(seed: int, variant: Variant) -> Task:
    """A CNN by SGD at 0.3 whose author also raised the momentum to 0.99."""
    return classify(small_cnn(), data.digits().standardized(), sgd(pick(variant, 0.3, 0.002, 0.001), 0.99), seed)


@case(kind="sick", what="Adam at a hundred times its rate", correction=LOWER, steps=350, chance=0.1)
def adam_tenth(seed: int, variant: Variant) -> Task:
    """A five-layer ReLU net by Adam at 0.1."""
    d = data.digits().standardized()
    return classify(mlp([64, 96, 96, 96, 96, 10]), d, using(torch.optim.Adam, pick(variant, 0.1, 1e-3, 5e-4)), seed)


@case(kind="sick", what="AdamW at sixty times its rate", correction=LOWER, steps=350, chance=0.1)
def adamw_gru(seed: int, variant: Variant) -> Task:
    """A GRU over the rows of a digit by AdamW at 0.3."""
    return classify(
        RowReader(), data.digits().standardized(), using(torch.optim.AdamW, pick(variant, 0.3, 5e-3, 3e-3)), seed
    )


@case(kind="sick", what="RMSprop at a hundred times its rate", correction=LOWER, steps=450)
def rmsprop_with_momentum(seed: int, variant: Variant) -> Task:
    """A regression by RMSprop at 0.1 with momentum, as an old TensorFlow program has it."""
    optimizer = using(torch.optim.RMSprop, pick(variant, 0.1, 1e-3, 5e-4), momentum=0.9)
    return regress(mlp([4, 64, 64, 64, 1]), data.waves(), optimizer, seed)


@case(kind="sick", what="Adagrad at a hundred times its rate", correction=LOWER, steps=400, chance=0.1)
def adagrad_digits(seed: int, variant: Variant) -> Task:
    """Digits by Adagrad at 3, a net of four layers."""
    return classify(
        mlp([64, 96, 64, 64, 10]),
        data.digits().standardized(),
        using(torch.optim.Adagrad, pick(variant, 3.0, 0.03, 0.02)),
        seed,
    )


@case(kind="sick", what="NAdam at a hundred times its rate", correction=LOWER, steps=350, chance=0.1)
def nadam_cnn(seed: int, variant: Variant) -> Task:
    """A small CNN by NAdam at 0.3."""
    return classify(
        small_cnn(), data.digits().standardized(), using(torch.optim.NAdam, pick(variant, 0.3, 2e-3, 1e-3)), seed
    )


@case(kind="sick", what="Adamax at six hundred times its rate", correction=LOWER, steps=450)
def adamax_regression(seed: int, variant: Variant) -> Task:
    """A four-layer regression by Adamax at 3."""
    d = data.houses().standardized().scaled(targets=1 / 200)
    return regress(mlp([5, 64, 64, 64, 1]), d, using(torch.optim.Adamax, pick(variant, 3.0, 5e-3, 3e-3)), seed)
