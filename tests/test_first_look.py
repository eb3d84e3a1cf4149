"""What can be said of a first update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard.first_look import build_up


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
