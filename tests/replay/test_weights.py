"""Weights that have strayed from a healthy copy."""

from __future__ import annotations

import math

import torch

from lightning_gradguard.replay.weights import stray
from tests.builders import mlp


def test_a_flipped_weight_is_named() -> None:
    module = mlp()
    assert stray(module) is None
    with torch.no_grad():
        module[2].weight[0, 5] = 1.7e30
    found = stray(module)
    assert found is not None and (found.name, found.index) == ("2.weight", (0, 5))
    with torch.no_grad():
        module[0].bias[3] = math.nan
    found = stray(module)
    assert found is not None and (found.name, found.index) == ("0.bias", (3,))
