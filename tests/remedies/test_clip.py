"""Clipping: by global norm, by value, by unit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard.remedies import Clip
from lightning_gradguard.remedies.clip import unit_norm
from tests.builders import context_for


def loud(scale: float = 100.0) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for p in module.parameters():
        p.grad = torch.randn_like(p) * scale
    return module


def total(module: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.norm()) ** 2 for p in module.parameters() if p.grad is not None))


def test_by_norm_reaches_the_target_and_keeps_the_direction() -> None:
    module = loud()
    before = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    outcome = Clip().apply(context_for(module, target=2.0))
    after = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert total(module) == pytest.approx(2.0, rel=1e-5)
    assert float(torch.cosine_similarity(before, after, dim=0)) == pytest.approx(1.0)
    assert outcome.applied and outcome.coefficient == pytest.approx(2.0 / float(before.norm()), rel=1e-4)


@pytest.mark.parametrize("algorithm", ["norm", "value", "adaptive", "sign"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_left_to_others(algorithm: Any, value: float) -> None:
    module = loud()
    next(module.parameters()).grad[0, 0] = value  # type: ignore[index]
    grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    assert not Clip(algorithm=algorithm).apply(context_for(module, target=1.0)).applied
    for p, before in zip(module.parameters(), grads, strict=True):
        assert p.grad is not None and torch.equal(p.grad.nan_to_num(), before.nan_to_num())


def test_along_the_sign_every_element_moves_alike_and_the_norm_is_the_target() -> None:
    module = loud()
    signs = [p.grad.sign() for p in module.parameters() if p.grad is not None]
    count = sum(int(s.count_nonzero()) for s in signs)
    Clip(algorithm="sign").apply(context_for(module, target=2.0))
    assert total(module) == pytest.approx(2.0, rel=1e-5)
    for p, sign in zip(module.parameters(), signs, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, sign * (2.0 / count**0.5))


def test_along_the_sign_zeros_stay_zero_and_do_not_count() -> None:
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[5e3, 0.0]]), torch.tensor([-7.0])
    outcome = Clip(algorithm="sign").apply(context_for(module, target=1.0))
    size = 2.0**-0.5
    assert module.weight.grad.tolist() == [[pytest.approx(size), 0.0]]
    assert module.bias.grad.tolist() == [pytest.approx(-size)]
    assert "0.707 along the sign" in outcome.detail and outcome.coefficient == pytest.approx(1 / 5e3, rel=1e-3)


@pytest.mark.parametrize("algorithm", ["norm", "sign"])
def test_below_the_target_the_gradient_is_not_touched(algorithm: Any) -> None:
    module = loud(1e-3)
    before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    assert Clip(algorithm=algorithm).apply(context_for(module, target=5.0)).coefficient == 1.0
    for p, grad in zip(module.parameters(), before, strict=True):
        assert p.grad is not None and torch.equal(p.grad, grad)


def test_by_value_limits_every_element_and_no_other() -> None:
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[5.0, -0.5]]), torch.tensor([-7.0])
    Clip(algorithm="value", clip_value=2.0).apply(context_for(module))
    assert module.weight.grad.tolist() == [[2.0, -0.5]] and module.bias.grad.tolist() == [-2.0]


@pytest.mark.parametrize("algorithm", ["norm", "value", "adaptive", "sign"])
def test_gradients_that_are_still_scaled_are_clipped_as_if_they_were_not(algorithm: Any) -> None:
    module = loud()
    twin = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin.load_state_dict(module.state_dict())
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        q.grad = p.grad * 1024.0
    Clip(algorithm=algorithm).apply(context_for(module, target=2.0))
    Clip(algorithm=algorithm).apply(context_for(twin, target=2.0, grad_scale=1024.0))
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad / 1024.0)


def test_by_unit_limits_each_row_to_a_part_of_its_weights() -> None:
    module = nn.Linear(3, 2)
    module.weight.grad = torch.tensor([[100.0, 0.0, 0.0], [1e-5, 0.0, 0.0]])
    Clip(algorithm="adaptive", clip_factor=0.1).apply(context_for(module))
    norms = module.weight.detach().norm(dim=1)
    assert float(module.weight.grad[0].norm()) == pytest.approx(0.1 * float(norms[0]), rel=1e-4)
    assert module.weight.grad[1, 0] == pytest.approx(1e-5), "a quiet row is not touched"


@pytest.mark.parametrize("algorithm", ["norm", "value", "adaptive", "sign"])
def test_sparse_gradients_are_clipped_too(algorithm: Any) -> None:
    module = nn.Embedding(6, 3, sparse=True)
    (module(torch.tensor([1, 1, 4])).sum() * 1e4).backward()
    Clip(algorithm=algorithm, clip_value=0.5, clip_factor=0.01).apply(context_for(module, target=1.0))
    assert module.weight.grad is not None
    dense = module.weight.grad.to_dense()
    allowed = {"norm": 1.0, "sign": 1.0, "value": 0.5 * 6**0.5, "adaptive": 0.01 * float(module.weight.detach().norm())}
    assert 0.0 < float(dense.norm()) <= allowed[algorithm] * 1.001
    assert dense[[0, 2, 3, 5]].count_nonzero() == 0


@pytest.mark.parametrize(("shape", "units"), [((5,), (1,)), ((4, 3), (4, 1)), ((4, 3, 2, 2), (4, 1, 1, 1)), ((), ())])
def test_a_unit_is_an_output_row_or_a_whole_vector(shape: tuple[int, ...], units: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    norms = unit_norm(tensor)
    assert norms.shape == units
    assert float(norms.square().sum()) == pytest.approx(float(tensor.square().sum()), rel=1e-5)
