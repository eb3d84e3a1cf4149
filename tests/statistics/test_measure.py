"""From gradients to their statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradguard.statistics.measure import measure, with_update
from tests.builders import statistics

NAMES = ("a", "b")


def grads(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value, 0.0]) for value in values]


def test_norms_are_unscaled_and_their_root_of_squares_is_the_global_one() -> None:
    found = measure(NAMES, grads(6.0, 8.0), step=3, loss=2.0, rate=0.1, scale=2.0)
    assert found.norms.tolist() == [3.0, 4.0] and found.norm == 5.0
    assert (found.step, found.loss, found.rate) == (3, 2.0, 0.1)


def test_what_is_not_finite_is_counted_by_name() -> None:
    found = measure(NAMES, grads(1.0, math.nan), step=0, loss=None, rate=None)
    assert not found.finite and found.nonfinite == (("b", 1),)


def test_a_norm_whose_square_overflows_is_finite_all_the_same() -> None:
    found = measure(NAMES, grads(3e30, 4e30), step=0, loss=None, rate=None)
    assert found.finite and found.norm == pytest.approx(5e30, rel=1e-6)


@pytest.mark.parametrize("loss", [2.0, torch.tensor(2.0), lambda norm: 2.0 if norm == 5.0 else None])
def test_a_loss_may_be_a_number_a_tensor_or_told_once_the_norm_is_known(loss: object) -> None:
    assert measure(NAMES, grads(3.0, 4.0), step=0, loss=loss, rate=None).loss == 2.0  # type: ignore[arg-type]


def test_an_update_is_as_large_as_the_rate_that_it_is_made_with() -> None:
    layer = nn.Linear(4, 4)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    parameters = dict(layer.named_parameters())
    ratios = [
        with_update(statistics(1.0), layer, parameters, optimizer, factor=factor).update_ratio for factor in (1.0, 0.5)
    ]
    assert ratios[0] and ratios[1] == pytest.approx(0.5 * ratios[0])
