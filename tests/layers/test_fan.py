"""How many inputs and outputs an element of a weight serves."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gradguard.layers.fan import expected_rms, fans


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (nn.Linear(8, 3), "weight", (8.0, 3.0)),
        (nn.Conv2d(4, 6, 3), "weight", (36.0, 54.0)),
        (nn.Conv2d(4, 8, 3, groups=2), "weight", (18.0, 36.0)),
    ],
    ids=["linear", "convolution", "groups"],
)
def test_fans_are_those_of_the_literature(module: nn.Module, name: str, expected: tuple[float, float]) -> None:
    assert fans(module, name) == pytest.approx(expected)


def test_a_fresh_layer_is_as_large_as_expected_within_a_factor_of_three() -> None:
    for layer in (nn.Linear(256, 64), nn.Conv2d(16, 16, 3)):
        usual = expected_rms(layer, "weight")
        assert usual is not None and 1 / 3 < float(layer.weight.square().mean().sqrt()) / usual < 3
    assert expected_rms(nn.BatchNorm1d(4), "weight") == 1.0
