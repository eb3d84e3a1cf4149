"""Sizes of tensors that neither overflow nor low precision spoils."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard.attribution import magnitude


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 3e4])
def test_a_size_near_the_ends_of_its_dtype_is_right(dtype: torch.dtype, scale: float) -> None:
    values = torch.full((6, 5), scale, dtype=dtype)
    assert float(magnitude.rms(values)) == pytest.approx(float(values[0, 0]), rel=1e-6)


def test_squares_that_overflow_do_not() -> None:
    assert float(magnitude.rms(torch.tensor([3e38, -3e38]))) == pytest.approx(3e38, rel=1e-6)
    assert not math.isfinite(float(magnitude.rms(torch.tensor([1.0, math.inf]))))
    assert float(magnitude.rms(torch.tensor([3.0 + 4.0j]))) == pytest.approx(5.0 / math.sqrt(2.0))


def test_pieces_are_the_whole_and_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 11, 3, generator=torch.Generator().manual_seed(0))
    whole = float(magnitude.rms(tensor))
    monkeypatch.setattr(magnitude, "COPIED_AT_ONCE", 10)
    parts = list(magnitude.pieces(tensor))
    assert max(p.numel() for p in parts) <= 10
    assert torch.equal(torch.cat([p.flatten() for p in parts]), tensor.flatten())
    assert float(magnitude.rms(tensor)) == pytest.approx(whole, rel=1e-5)


def test_numbers_come_to_the_host_in_their_order() -> None:
    assert magnitude.to_host([torch.tensor(3.0), torch.tensor(1), torch.tensor(2.5)]) == [3.0, 1.0, 2.5]
