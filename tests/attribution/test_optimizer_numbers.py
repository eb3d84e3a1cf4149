"""Numbers of an optimizer that are 0 in the precision of its parameters."""

from __future__ import annotations

import pytest
import torch

from lightning_gradguard.attribution.optimizer_numbers import vanishing_number


@pytest.mark.parametrize(
    ("dtype", "eps", "expected"),
    [
        (torch.float32, 1e-8, False),
        (torch.float16, 1e-8, True),
        (torch.float16, 1e-4, False),
        (torch.float16, 0.0, False),
    ],
)
def test_an_eps_that_is_nothing_in_half_precision_is_named(dtype: torch.dtype, eps: float, expected: bool) -> None:
    said = vanishing_number(torch.optim.Adam([torch.zeros(2, dtype=dtype, requires_grad=True)], eps=eps))
    assert (said is not None) == expected
    assert said is None or "eps=1e-08 is 0 in float16" in said


def test_an_optimizer_without_such_numbers_is_let_be() -> None:
    assert vanishing_number(torch.optim.SGD([torch.zeros(2, dtype=torch.float16, requires_grad=True)], lr=0.1)) is None
