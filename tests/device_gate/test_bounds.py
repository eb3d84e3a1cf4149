"""What a device compares a norm with."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard.device_gate import Bounds


@pytest.mark.parametrize(
    ("norm", "fused", "coefficient"),
    [
        (0.0, False, 1.0),
        (4.0, False, 1.0),
        (4.1, False, 0.0),
        (8.0, True, 0.25),
        (40.0, True, 0.05),
        (41.0, True, 0.0),
        (math.nan, True, 0.0),
        (math.inf, False, 0.0),
    ],
)
def test_a_norm_passes_is_clipped_or_has_its_step_skipped(norm: float, fused: bool, coefficient: float) -> None:
    found, skip = Bounds(4.0, 2.0, 10.0).compared(torch.tensor(norm, dtype=torch.float64), fused=fused)
    assert float(found) == pytest.approx(coefficient)
    assert bool(skip) is (coefficient == 0.0)


@pytest.mark.parametrize("fused", [True, False])
def test_without_a_limit_only_what_is_not_finite_is_skipped(fused: bool) -> None:
    bounds = Bounds(math.inf, 1.0, 10.0)
    found = [float(bounds.compared(torch.tensor(n).double(), fused=fused)[0]) for n in (1e30, math.inf, math.nan)]
    assert found == [1.0, 0.0, 0.0]
