"""Norms against a float64 reference, over shapes, dtypes, layouts and magnitudes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradguard.statistics.norms import examine, global_norm, gradient_norms, local

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 5), (0,), (0, 4)]
SPECIAL = [math.nan, math.inf, -math.inf]


@st.composite
def gradients(draw: st.DrawFn, *, broken: bool) -> Tensor:
    """One gradient of any dtype, layout and magnitude."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    exponent = draw(st.integers(-40, 38))
    seed = draw(st.integers(0, 10**6))
    largest = min(torch.finfo(dtype).max, 1e38)
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    grad = values.clamp(-largest, largest).to(dtype)
    if broken and grad.numel():
        grad.view(-1)[draw(st.integers(0, grad.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    if grad.dim() == 2 and len(grad) and draw(st.booleans()):
        # Every row is named twice: duplicates add up.
        index = torch.arange(len(grad)).repeat(2)[None]
        halves = torch.cat([grad, torch.zeros_like(grad)])
        return torch.sparse_coo_tensor(index, halves, grad.shape, check_invariants=False)
    return grad


def reference(grad: Tensor) -> float:
    """The norm in float64, dense."""
    dense = grad.to_dense() if grad.is_sparse else grad
    return float(torch.linalg.vector_norm(dense.to(torch.complex128 if dense.is_complex() else torch.float64)))


@given(st.lists(gradients(broken=False), max_size=5))
def test_norms_agree_with_a_float64_reference(grads: list[Tensor]) -> None:
    for grad, norm in zip(grads, gradient_norms(grads).double().tolist(), strict=True):
        true = reference(grad)
        if 1e-18 < true < 1e18:
            assert norm == pytest.approx(true, rel=1e-4)
        elif true >= 1e18:
            assert norm == pytest.approx(true, rel=1e-4) or norm == math.inf
        else:
            assert norm <= 1.001e-18


@given(st.lists(gradients(broken=False), max_size=5))
def test_the_slow_reading_never_overflows_and_finds_nothing_in_finite_gradients(grads: list[Tensor]) -> None:
    norms, counts = examine(grads)
    assert counts == [0] * len(grads)
    assert norms == pytest.approx([reference(g) for g in grads], rel=1e-5, abs=1e-300)


@given(gradients(broken=True), gradients(broken=False))
def test_one_broken_element_is_seen_by_both_readings(broken: Tensor, sound: Tensor) -> None:
    norms, counts = examine([sound, broken])
    has_elements = (broken._nnz() if broken.is_sparse else broken.numel()) > 0
    assert counts[0] == 0 and math.isfinite(norms[0])
    assert counts[1] == int(has_elements)
    assert math.isfinite(global_norm(norms)) is not has_elements
    fast = gradient_norms([sound, broken]).double().numpy()
    assert math.isfinite(fast[1]) is not has_elements


def test_order_and_count_are_kept() -> None:
    grads = [torch.full((2,), float(i)) for i in range(50)]
    assert gradient_norms(grads).tolist() == pytest.approx([i * math.sqrt(2) for i in range(50)])


def test_nothing_gives_nothing() -> None:
    assert gradient_norms([]).shape == (0,)
    norms, counts = examine([])
    assert norms.shape == (0,) and norms.dtype == np.float64 and counts == []
    assert global_norm(norms) == 0.0


def test_half_precision_is_measured_in_single() -> None:
    assert gradient_norms([torch.full((100,), 6e4, dtype=torch.float16)]).item() == pytest.approx(6e5, rel=1e-3)


def test_a_huge_finite_gradient_is_told_apart_from_an_infinite_one() -> None:
    huge = [torch.full((4,), 1e20)]
    assert gradient_norms(huge).item() == math.inf
    norms, counts = examine(huge)
    assert norms == pytest.approx([2e20]) and counts == [0]


def test_every_broken_element_is_counted() -> None:
    grad = torch.tensor([[math.nan, 1.0], [-math.inf, math.inf]])
    assert examine([grad, grad[0]])[1] == [3, 1]


@pytest.mark.parametrize(
    ("norms", "expected"),
    [([3.0, 4.0], 5.0), ([math.inf, 1.0], math.inf), ([math.inf, math.nan], math.nan), ([0.0, math.inf], math.inf)],
)
def test_global_norm_lets_nan_win(norms: list[float], expected: float) -> None:
    assert global_norm(np.array(norms)) == pytest.approx(expected, nan_ok=True)


def test_measuring_changes_nothing() -> None:
    grads: list[Any] = [torch.randn(3, 3), torch.tensor([math.nan, 1.0])]
    before = [g.clone() for g in grads]
    gradient_norms(grads)
    examine(grads)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(grads, before, strict=True))


def test_local_gives_the_stored_real_values() -> None:
    assert local(torch.ones(2, dtype=torch.complex64)).shape == (2, 2)
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 3), (4, 3), check_invariants=False)
    assert local(twice).tolist() == [[2.0, 2.0, 2.0]]
