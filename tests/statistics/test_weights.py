"""Norms of weights and update-to-weight ratios: right to some percent, taken rarely, and never in the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard.statistics.weights import WeightScale


def network() -> nn.Sequential:
    net = nn.Sequential(
        nn.Embedding(50, 33),
        nn.Linear(33, 1024),
        nn.Linear(1024, 9),
        nn.Conv2d(3, 8, 3),
        nn.LayerNorm(5),
        nn.Identity(),
    )
    net[3].to(memory_format=torch.channels_last)
    return net


def move(net: nn.Module, share: float) -> dict[str, float]:
    """Move all weights by a share of their norm; return norms as they were."""
    before = {}
    with torch.no_grad():
        for name, p in net.named_parameters():
            before[name.rpartition(".")[0]] = float(p.norm()) if name.endswith("weight") else 0.0
            p.add_(torch.randn_like(p), alpha=share * float(p.norm()) / p.numel() ** 0.5)
    return before


def test_norms_and_ratios_are_right() -> None:
    torch.manual_seed(0)
    net, scale = network(), WeightScale()
    parameters = dict(net.named_parameters())
    for share in (1e-2, 1e-5):
        scale.look(parameters)
        norms = {n.rpartition(".")[0]: float(p.detach().norm()) for n, p in parameters.items() if n.endswith("weight")}
        move(net, share)
        scale.look(parameters)
        measured, ratios = scale.take([*norms, "nobody"])
        assert measured[:-1] == pytest.approx(list(norms.values()), rel=2e-3)
        # The norm layer has five elements, of which a draw says little.
        assert ratios[:4] == pytest.approx(share, rel=0.2) and ratios[4] == pytest.approx(share, rel=1.0)
        assert np.isnan(measured[-1]) and np.isnan(ratios[-1])


def test_an_update_that_was_skipped_moves_nothing() -> None:
    scale, parameters = WeightScale(), dict(network().named_parameters())
    scale.look(parameters)
    scale.look(parameters)
    assert scale.take(["1"])[1].tolist() == [0.0]


def test_nothing_is_known_before_both_looks() -> None:
    scale, parameters = WeightScale(), dict(network().named_parameters())
    assert np.isnan(scale.take(["1"])).all()
    scale.look(parameters)
    assert scale.awaits_update
    assert np.isnan(scale.take(["1"])).all()
    scale.look(parameters)
    assert not scale.awaits_update
    assert np.isfinite(scale.take(["1"])).all()


def test_weights_that_have_moved_to_other_memory_are_asked_anew() -> None:
    net, scale = network(), WeightScale()
    parameters = dict(net.named_parameters())
    scale.look(parameters)
    parameters["1.weight"].data = parameters["1.weight"].data.clone() * 2.0
    scale.look(parameters)
    assert np.isnan(scale.take(["1"])).all(), "no change of the weights, but of where they are"
    scale.look(parameters)
    scale.look(parameters)
    assert scale.take(["1"])[0] == pytest.approx(float(net[1].weight.detach().norm()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_dtypes(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(30, 20, dtype=dtype))
    scale = WeightScale()
    scale.look({"layer.weight": weight})
    with torch.no_grad():
        weight.mul_(1.5)
    scale.look({"layer.weight": weight})
    norms, ratios = scale.take(["layer"])
    assert norms == pytest.approx(600**0.5, rel=1e-2) and ratios == pytest.approx(0.5, rel=1e-2)


def test_what_cannot_be_measured_is_left_out() -> None:
    lazy, bits = nn.LazyLinear(3), nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    scale = WeightScale()
    scale.look({"lazy.weight": lazy.weight, "quantised.weight": bits, "empty.weight": nn.Parameter(torch.zeros(0))})
    scale.look({})
    assert np.isnan(scale.take(["lazy", "quantised", "empty"])).all()
    lazy(torch.ones(2, 5))
    for _ in range(2):
        scale.look(dict(lazy=lazy.weight))
    assert np.isfinite(scale.take(["lazy"])).all()
