"""Sick runs of deep plain nets whose weights were drawn at the wrong size, or whose activations saturate."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.wild import fault_data as data
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.fault_nets import classify, fit_to_data, he, mlp, orthogonal, redraw, regress, sgd, using

DIGIT = 1 / 16


@case(
    kind="sick", what="twelve ReLU layers drawn from N(0, 1)", correction="initialisation anew", steps=400, chance=0.1
)
def standard_normal_everywhere(seed: int, variant: Variant) -> Task:
    """Somebody's own loop of ``torch.nn.init.normal_(p)`` over all parameters."""
    net = mlp([64, *[64] * 11, 10])
    net = redraw(net, nn.init.normal_, biases=True) if variant == "written" else he(net)
    return classify(net, data.digits().scaled(DIGIT), sgd(0.02, 0.9), seed)


@case(
    kind="sick", what="fifteen tanh layers drawn from N(0, 1)", correction="initialisation anew", steps=400, chance=0.1
)
def saturated_tanh_tower(seed: int, variant: Variant) -> Task:
    """All units at -1 or 1 from the first step on."""
    net = mlp([64, *[48] * 14, 10], nn.Tanh)
    net = redraw(net, nn.init.normal_) if variant == "written" else orthogonal(net)
    return classify(net, data.digits().standardized(), sgd(0.02, 0.9), seed)


@case(
    kind="sick",
    what="twelve sigmoid layers",
    correction="activation swapped, initialisation anew",
    steps=400,
    chance=0.1,
)
def sigmoids_all_the_way(seed: int, variant: Variant) -> Task:
    """A twelve-layer sigmoid net as a course of 1995 would draw it: no gradient reaches the first layers."""
    sizes = [64, *[48] * 11, 10]
    net = mlp(sizes, nn.Sigmoid) if variant == "written" else orthogonal(mlp(sizes, nn.Tanh))
    return classify(net, data.digits().standardized(), sgd(0.02, 0.9), seed)


@case(
    kind="sick",
    what="thirty ReLU layers as torch draws them",
    correction="initialisation by the data",
    steps=400,
    chance=0.1,
)
def twenty_layers_by_default(seed: int, variant: Variant) -> Task:
    """Every layer shrinks what it is given, until only the biases are left."""
    net = mlp([64, *[40] * 19, 10])
    d = data.digits().scaled(DIGIT)
    if variant != "written":
        he(net)
    return classify(net, d, using(torch.optim.Adam, 1e-3), seed)


@case(kind="sick", what="constant weights", correction="initialisation anew", steps=300, chance=0.1)
def constant_for_reproducibility(seed: int, variant: Variant) -> Task:
    """All weights 0.01 so that every run is the same: all units of a layer are as well."""
    net = mlp([64, 96, 48, 10])
    net = redraw(net, lambda p: nn.init.constant_(p, 0.01)) if variant == "written" else he(net)
    return classify(net, data.digits().scaled(DIGIT), sgd(0.05, 0.9), seed)


@case(kind="sick", what="eight layers drawn at 0.01", correction="initialisation by the data", steps=500)
def too_small_for_eight_layers(seed: int, variant: Variant) -> Task:
    """Weights of deviation 0.01 as in AlexNet, in a regression net of eight layers of 40."""
    net, d = mlp([4, *[40] * 7, 1]), data.waves()
    if variant == "written":
        redraw(net, lambda p: nn.init.normal_(p, 0, 0.01))
    else:
        net = fit_to_data(net, d.x[:256]) if variant == "corrected" else he(net)
    return regress(net, d, sgd(0.01, 0.9), seed)


@case(kind="sick", what="plain CNN drawn from N(0, 1)", correction="initialisation anew", steps=250, chance=0.1)
def cnn_standard_normal(seed: int, variant: Variant) -> Task:
    """Eight convolutions without shortcut or norm, drawn four times too large."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    net: nn.Module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))
    net = redraw(net, nn.init.normal_) if variant == "written" else he(net)
    return classify(net, data.digits().scaled(DIGIT), sgd(0.02, 0.9), seed)


@case(kind="sick", what="unscaled uniform weights in an ELU net", correction="initialisation anew", steps=500)
def uniform_minus_one_to_one(seed: int, variant: Variant) -> Task:
    """Weights from U(-1, 1) as a tutorial's NumPy net has them, ten layers wide enough to blow up."""
    net = mlp([4, *[50] * 9, 1], nn.ELU)
    net = redraw(net, lambda p: nn.init.uniform_(p, -1, 1)) if variant == "written" else orthogonal(net)
    return regress(net, data.waves(), sgd(0.005, 0.9), seed)
