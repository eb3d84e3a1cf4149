"""Statistics against a float64 reference, over shapes, dtypes, layouts and magnitudes: nothing misleads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradguard.statistics import norms as statistics
from lightning_gradguard.statistics.norms import examine, global_norm, host_norms

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LAYOUTS = ["contiguous", "transposed", "strided", "expanded", "channels last", "offset", "sparse", "hybrid", "twice"]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (0, 4), (4, 0), (2, 3, 4, 5), (1, 1, 1)]
SPECIAL = [math.nan, math.inf, -math.inf]


@st.composite
def gradients(draw: st.DrawFn) -> Tensor:
    """One gradient of any dtype, shape, layout and magnitude, denormal to 1e38; perhaps with broken elements."""
    dtype, shape, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES)), draw(st.sampled_from(LAYOUTS))
    exponent, seed = draw(st.integers(-45, 38)), draw(st.integers(0, 10**6))
    largest = min(torch.finfo(dtype).max, 3e38)
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    grad = values.clamp(-largest, largest).to(dtype)
    for _ in range(draw(st.integers(0, 2)) if grad.numel() else 0):
        grad.view(-1)[draw(st.integers(0, grad.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    return laid_out(grad, layout)


def laid_out(grad: Tensor, layout: str) -> Tensor:
    """Return the same values in another layout, where the shape allows it."""
    if layout == "transposed" and grad.dim() == 2:
        return grad.t().contiguous().t()
    if layout == "strided" and grad.dim():
        return torch.stack([grad, grad * 0 + 7], dim=-1)[..., 0]
    if layout == "expanded" and grad.dim():
        return grad[:1].expand(grad.shape)
    if layout == "channels last" and grad.dim() == 4:
        return grad.contiguous(memory_format=torch.channels_last)
    if layout == "offset" and grad.dim() and grad.shape[0]:
        return torch.cat([grad, grad])[grad.shape[0] :]
    if layout in ("sparse", "hybrid") and grad.dim() == 2 and grad.isfinite().all():
        return grad.to_sparse(2 if layout == "sparse" else 1)
    if layout == "twice" and grad.dim() == 2 and len(grad):
        index = torch.arange(len(grad)).repeat(2)[None]
        return torch.sparse_coo_tensor(
            index, torch.cat([grad, torch.zeros_like(grad)]), grad.shape, check_invariants=False
        )
    return grad


def values(grad: Tensor) -> np.ndarray[Any, Any]:
    dense = grad.to_dense() if grad.is_sparse else grad
    wide = dense.to(torch.complex128 if dense.is_complex() else torch.float64)
    return (torch.view_as_real(wide) if wide.is_complex() else wide).numpy().ravel()


def reference(grad: Tensor) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(values(grad)))


GRADIENTS = st.lists(gradients(), max_size=6)


@given(GRADIENTS)
def test_the_fast_reading_is_right_or_says_that_it_is_not_finite(grads: list[Tensor]) -> None:
    for grad, norm in zip(grads, host_norms(grads), strict=True):
        true = reference(grad)
        if not math.isfinite(true):
            assert not math.isfinite(norm)
        elif 1e-18 < true < 1e18:
            assert norm == pytest.approx(true, rel=1e-4)
        elif true >= 1e18:
            assert norm == pytest.approx(true, rel=1e-4) or norm == math.inf
        else:
            # Squares below the smallest float32 vanish; so small a gradient is as good as none.
            assert 0.0 <= norm <= 1.001e-18


@given(GRADIENTS, st.sampled_from([1, 3, 2**20]))
def test_the_slow_reading_is_exact_whatever_the_size_of_its_pieces(grads: list[Tensor], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "EXAMINED_AT_ONCE", piece)
        norms, counts = examine(grads)
    for grad, norm, count in zip(grads, norms, counts, strict=True):
        true, elements = reference(grad), values(grad)
        broken = int((~np.isfinite(elements)).sum())
        assert (count > 0) is (broken > 0) and count <= broken
        assert norm == pytest.approx(true, rel=1e-5, abs=1e-300, nan_ok=True) or not math.isfinite(true)
        assert math.isfinite(norm) is (broken == 0)


@given(GRADIENTS)
def test_measuring_changes_no_gradient(grads: list[Tensor]) -> None:
    before = [values(grad).copy() for grad in grads]
    host_norms(grads)
    examine(grads)
    assert all(np.array_equal(a, values(b), equal_nan=True) for a, b in zip(before, grads, strict=True))


@given(st.lists(st.floats(min_value=0.0) | st.just(math.nan), max_size=6))
def test_the_global_norm_is_not_finite_where_one_norm_is_not(norms: list[float]) -> None:
    found = global_norm(np.array(norms, dtype=np.float64))
    if any(math.isnan(n) for n in norms):
        assert math.isnan(found)
    elif any(math.isinf(n) for n in norms):
        assert found == math.inf
    else:
        assert found == pytest.approx(math.hypot(*norms), rel=1e-9, abs=1e-150) or max(norms) > 1e150
