"""What can be said of a first update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard.statistics.update_ratio import build_up, moved, update_ratio


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.99},
        {"momentum": 0.9, "dampening": 0.5},
    ],
)
def test_the_build_up_is_what_a_constant_gradient_comes_to(options: dict[str, Any]) -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0, **options)
    sizes = []
    for _ in range(3000):
        before = float(layer.weight.detach())
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        sizes.append(before - float(layer.weight.detach()))
    assert sizes[-1] == pytest.approx(build_up(optimizer), rel=1e-6)


def test_adams_updates_do_not_build_up() -> None:
    assert build_up(torch.optim.Adam(nn.Linear(1, 1).parameters())) == 1.0


@pytest.mark.parametrize("rate", [1e-3, 10.0])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_ratio_foretold_is_that_of_the_update_that_comes(kind: Any, rate: float) -> None:
    layer = nn.Linear(16, 16)
    optimizer = kind(layer.parameters(), lr=rate)
    layer(torch.randn(8, 16)).square().sum().backward()
    nn.init.normal_(layer.weight, std=0.25)  # what its fan calls for
    before = layer.weight.detach().clone()
    ratio = update_ratio(layer, dict(layer.named_parameters()), optimizer)
    optimizer.step()
    assert ratio is not None
    assert ratio == pytest.approx(float((layer.weight.detach() - before).norm() / before.norm()), rel=0.1)


def test_an_optimizer_of_an_unknown_kind_foretells_nothing() -> None:
    layer = nn.Linear(4, 4)
    layer(torch.randn(8, 4)).sum().backward()
    assert update_ratio(layer, dict(layer.named_parameters()), torch.optim.Adadelta(layer.parameters())) is None


def test_what_goes_by_signs_is_foretold_from_the_steps_that_it_keeps() -> None:
    """No update of Rprop is larger than what is foretold, and one in which no sign has changed is as large."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False)
    nn.init.normal_(layer.weight, std=0.25)  # what its fan calls for
    parameters, optimizer = dict(layer.named_parameters()), torch.optim.Rprop(layer.parameters(), lr=1e-3)
    for step in range(12):
        optimizer.zero_grad()
        x = torch.randn(8, 16) if step > 5 else torch.ones(8, 16)
        layer(x).sum().backward()
        before = layer.weight.detach().clone()
        ratio = update_ratio(layer, parameters, optimizer)
        optimizer.step()
        made = float((layer.weight.detach() - before).norm() / before.norm())
        assert ratio is not None and made <= 1.01 * ratio
        assert step > 5 or made == pytest.approx(ratio, rel=0.05)


def test_a_weight_that_starts_at_zero_on_purpose_is_measured_by_what_its_fan_calls_for() -> None:
    layer = nn.Linear(16, 16)
    layer(torch.randn(8, 16)).sum().backward()
    nn.init.zeros_(layer.weight)
    ratio = update_ratio(layer, dict(layer.named_parameters()), torch.optim.Adam(layer.parameters(), 1e-3))
    assert ratio == pytest.approx(4e-3)


def test_what_an_optimizer_of_any_kind_did_is_measured_against_a_copy() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    nn.init.normal_(module[0].weight, std=0.125)  # what its fan calls for
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        module[0].weight.add_(0.05 * before["0.weight"].sign())
        module[1].weight.add_(100.0)  # no matrix: it may be replaced without harm
    assert moved(module, dict(module.named_parameters()), before) == pytest.approx(0.05 / 0.125, rel=0.1)
