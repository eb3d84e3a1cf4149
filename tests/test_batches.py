"""The batch as a suspect."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_gradguard.batches import BatchWitness
from tests.builders import through_a_file


def witness(times: int = 5) -> BatchWitness:
    seen = BatchWitness()
    for _ in range(times):
        seen.remember({"x": torch.randn(8, 3), "y": torch.arange(8)})
    return seen


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_is_accused_even_at_first(value: float) -> None:
    batch = {"x": torch.ones(2, 2), "more": [torch.tensor([1.0, value, value])]}
    blame = BatchWitness().accuse(batch)
    assert blame is not None and blame.layer == "batch" and blame.score == math.inf
    assert "2 of 3" in blame.reason


def test_a_batch_far_larger_than_healthy_ones_is_accused() -> None:
    batch = {"x": torch.randn(8, 3), "y": torch.arange(8)}
    assert witness().accuse(batch) is None
    batch["x"] *= 1e3
    blame = witness().accuse(batch)
    assert blame is not None and blame.score > math.log(10)


def test_nan_is_no_evidence_where_healthy_batches_hold_it() -> None:
    """What is missing is marked so; the scale of such batches is not known."""
    seen, gaps = BatchWitness(), {"x": torch.tensor([1.0, math.nan])}
    for _ in range(5):
        seen.remember(gaps)
    assert seen.accuse(gaps) is None and seen.accuse_peaks([math.nan]) is None
    again = BatchWitness()
    again.load_state_dict(through_a_file(seen.state_dict()))
    assert again.accuse(gaps) is None


def test_without_enough_healthy_batches_scale_is_no_evidence() -> None:
    assert witness(1).accuse({"x": torch.full((8, 3), 1e9), "y": torch.arange(8)}) is None
    assert BatchWitness().accuse({"x": torch.full((8, 3), 1e9)}) is None


def test_a_broken_batch_teaches_nothing() -> None:
    seen = witness()
    before = seen.state_dict()
    seen.remember({"x": torch.tensor([math.inf]), "y": torch.arange(8)})
    assert seen.state_dict() == before


@pytest.mark.parametrize("batch", [None, [], {}, "text", torch.arange(3), [torch.zeros(0)], object(), iter([1])])
def test_any_batch_will_do(batch: Any) -> None:
    seen = witness()
    seen.remember(batch)
    assert seen.accuse(batch) is None


def test_sparse_tensors_are_passed_over() -> None:
    seen = BatchWitness()
    batch = [torch.eye(3).to_sparse(), torch.eye(3).bfloat16()]
    seen.remember(batch)
    assert seen.accuse(batch) is None and len(seen.state_dict()["peaks"]) == 1


def test_integers_and_their_range_do_not_matter() -> None:
    assert witness().accuse({"x": torch.randn(8, 3), "y": torch.full((8,), 10**9)}) is None


def test_state_round_trips() -> None:
    seen, again = witness(), BatchWitness()
    again.load_state_dict(through_a_file(seen.state_dict()))
    assert again.state_dict() == seen.state_dict()
    assert again.accuse({"x": torch.full((8, 3), 1e9), "y": torch.arange(8)}) is not None
