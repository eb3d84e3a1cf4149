"""Sick runs whose inputs or targets were left in the units they came in."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.fault_nets import classify, fit_to_data, mlp, pick, regress, sgd, using


@case(kind="sick", what="raw wine table", correction="initialisation by the data, lower rate", steps=400, chance=0.4)
def wine_raw_columns(seed: int, variant: Variant) -> Task:
    """Columns of 0.1 and of 1,000 side by side, RMSprop at a rate fit for columns of deviation 1."""
    d = data.wine().standardized() if variant == "twin" else data.wine()
    net = mlp([13, 32, 32, 3])
    if variant == "corrected":
        fit_to_data(net, d.x[:64], inputs=True)
    return classify(net, d, using(torch.optim.RMSprop, pick(variant, 0.1, 0.003, 1e-4)), seed, size=16)


@case(kind="sick", what="pixels of 0 to 255", correction="lower rate", steps=600, chance=0.1)
def pixels_up_to_255(seed: int, variant: Variant) -> Task:
    """A digit net whose author forgot to divide by 255, by SGD at 0.1."""
    d = data.digits().scaled(1 / 16 if variant == "twin" else 255 / 16)
    return classify(mlp([64, 128, 64, 10]), d, sgd(pick(variant, 0.1, 0.1, 6e-5), 0.9), seed)


@case(
    kind="sick",
    what="pixels of 0 to 255 in a CNN",
    correction="initialisation by the data, lower rate",
    steps=300,
    chance=0.1,
)
def cnn_pixels_up_to_255(seed: int, variant: Variant) -> Task:
    """A small CNN on bytes turned into floats, by Adam at 0.2."""
    d = data.digits().scaled(1 / 16 if variant == "twin" else 255 / 16)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip
    return classify(net, d, using(torch.optim.Adam, pick(variant, 0.2, 2e-3, 5e-4)), seed)


@case(kind="sick", what="targets in the thousands", correction="lower rate", steps=600)
def rents_in_the_thousands(seed: int, variant: Variant) -> Task:
    """Monthly rents of some thousands as targets of a mean squared error, by SGD at 0.01."""
    d = data.houses().standardized().scaled(targets=1 / 200 if variant == "twin" else 10.0)
    return regress(mlp([5, 64, 1]), d, sgd(pick(variant, 0.01, 0.01, 1e-5)), seed)


@case(
    kind="sick",
    what="targets in the hundreds, inputs raw",
    correction="initialisation by the data, lower rate",
    steps=600,
)
def flats_all_raw(seed: int, variant: Variant) -> Task:
    """Areas, ages and prices as the table has them, by SGD with momentum."""
    d = data.houses().standardized().scaled(targets=1 / 200) if variant == "twin" else data.houses()
    net = mlp([5, 64, 64, 1])
    if variant == "corrected":
        fit_to_data(net, d.x[:128], inputs=True)
    return regress(net, d, sgd(pick(variant, 0.01, 0.03, 1e-6), 0.9), seed)
