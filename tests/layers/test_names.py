"""Layers by name."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradguard.layers.names import compiled


def test_a_compiled_part_is_found_wherever_it_is() -> None:
    inside = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)))
    in_place = nn.Sequential(nn.Linear(2, 2))
    assert not compiled(in_place)
    in_place[0].compile()
    assert compiled(inside) and compiled(in_place)
