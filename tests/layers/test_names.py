"""Layers by name."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.layers.names import clean, compiled, unwrapped
from tests.builders import mlp, regression


def test_a_compiled_part_is_found_wherever_it_is() -> None:
    inside = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)))
    in_place = nn.Sequential(nn.Linear(2, 2))
    assert not compiled(in_place)
    in_place[0].compile()
    assert compiled(inside) and compiled(in_place)


def test_what_fabric_puts_around_a_module_is_in_no_name() -> None:
    network = mlp()
    module, optimizer = Fabric(accelerator="cpu", devices=1).setup(network, torch.optim.SGD(network.parameters(), 0.1))
    assert unwrapped(module) is network
    assert clean("net._forward_module.0.weight") == "net.0.weight"
    guard = Guard(module)
    for x, y in regression(2):
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        assert guard.before_step(optimizer, loss=loss).statistics.names[0] == "0.weight"


class Rooted(nn.Module):
    """A network whose root owns parameters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.net = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x) * self.scale
        return y


def test_a_parameter_of_the_root_is_told_by_its_own_name() -> None:
    network = Rooted()
    optimizer, guard = torch.optim.SGD(network.parameters(), 0.01), Guard(network)
    for index, (x, y) in enumerate(regression(40)):
        if index == 20:
            network.scale.data.fill_(torch.nan)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()
    assert guard.incidents[0].culprit == "scale", guard.report()
    assert "first in scale" in guard.report()
    assert network.scale.isfinite()
