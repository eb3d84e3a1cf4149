"""The batch as a suspect."""

from __future__ import annotations

import math
from collections import UserDict, deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lightning_gradguard.attribution.batch import REMEMBERED, BatchWitness, tensors_in
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


def test_data_of_heavy_tails_exceed_themselves_and_that_is_no_evidence() -> None:
    """The largest of 32 batches seen was a hundred times the middle one: one of fifty times that is no surprise."""
    seen = BatchWitness()
    for peak in (1.0, 0.5, 2.0, 100.0, 1.0):
        seen.remember(torch.tensor([peak]))
    assert seen.accuse(torch.tensor([5e3])) is None
    blame = seen.accuse(torch.tensor([1e9]))
    assert blame is not None and "1e+07 x" in blame.reason


@pytest.mark.parametrize(("seen", "most"), [(8, 0.01), (REMEMBERED, 0.001)])
@pytest.mark.parametrize("spread", ["log-normal", "Cauchy"])
def test_batches_of_heavy_tails_are_seldom_accused(spread: str, seen: int, most: float) -> None:
    """Cauchy's distribution has no largest at all."""

    def draw() -> torch.Tensor:
        return torch.empty(64).cauchy_() if spread == "Cauchy" else torch.randn(64).mul(2.0).exp()

    accused = 0
    for _ in range(20):
        witness = BatchWitness()
        for _ in range(seen):
            witness.remember(draw())
        accused += sum(witness.accuse(draw()) is not None for _ in range(100))
    assert accused / 2000 <= most


def test_what_was_seen_is_bounded() -> None:
    assert len(witness(200).state_dict()["peaks"]) == REMEMBERED


def test_each_tensor_of_a_batch_has_a_scale_of_its_own() -> None:
    seen = BatchWitness()
    for _ in range(5):
        seen.remember([torch.randn(8), 1e6 * torch.randn(8)])
    assert seen.accuse([1e3 * torch.randn(8), 1e6 * torch.randn(8)]) is not None
    assert seen.accuse([torch.randn(8), 2e6 * torch.randn(8)]) is None


def test_batches_of_another_make_up_are_learned_anew() -> None:
    seen = witness()
    for _ in range(2):
        seen.remember([torch.randn(8), torch.randn(8)])
    assert len(seen.state_dict()["peaks"]) == 2 and seen.accuse([torch.full((8,), 150.0)] * 2) is None


def test_nan_is_no_evidence_where_healthy_batches_hold_it() -> None:
    """What is missing is marked so; the scale of such batches is not known."""
    seen, gaps = BatchWitness(), {"x": torch.tensor([1.0, math.nan])}
    for _ in range(5):
        seen.remember(gaps)
    assert seen.accuse(gaps) is None and seen.accuse_peaks([math.nan]) is None
    again = BatchWitness()
    again.load_state_dict(through_a_file(seen.state_dict()))
    assert again.accuse(gaps) is None


@pytest.mark.parametrize(("seen", "times"), [(1, 1000.0), (2, 100.0), (3, 10.0), (5, 10.0)])
def test_the_fewer_healthy_batches_were_seen_the_more_is_asked(seen: int, times: float) -> None:
    one = BatchWitness()
    for _ in range(seen):
        one.remember({"x": torch.ones(8, 3), "y": torch.arange(8)})
    assert one.accuse({"x": torch.full((8, 3), 0.9 * times), "y": torch.arange(8)}) is None
    assert one.accuse({"x": torch.full((8, 3), 1.1 * times), "y": torch.arange(8)}) is not None
    assert one.knows_few is (seen < 3)


def test_without_a_healthy_batch_scale_is_no_evidence() -> None:
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


@dataclass
class Images:
    """A batch as anomalib makes them."""

    image: torch.Tensor
    label: torch.Tensor | None = None


class Graph:
    """A batch as PyTorch Geometric makes them: an object that can be moved, and says what it holds."""

    def __init__(self, **held: Any) -> None:
        self._store = held

    def to(self, device: Any) -> Graph:
        """Move it."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Say what it holds."""
        return dict(self._store)


class Moved:
    """An object that can be moved, and no more; it holds itself."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.me = x, self

    def to(self, device: Any) -> Moved:
        """Move it."""
        return self


@pytest.mark.parametrize(
    "wrap",
    [
        Images,
        lambda x: Graph(x=x, name="a graph"),
        Moved,
        lambda x: UserDict(x=x),
        lambda x: deque([x]),
        lambda x: [Images(x), {"more": (None, 1, "a name", Graph)}],
        lambda x: torch.nn.utils.rnn.pack_sequence([x]),
    ],
    ids=["dataclass", "graph", "object", "UserDict", "deque", "nested", "packed"],
)
def test_tensors_are_found_in_whatever_lightning_moves(wrap: Any) -> None:
    held = wrap(x := torch.randn(8, 3))
    assert any(torch.equal(x, tensor) for tensor in tensors_in(held))
    seen = BatchWitness()
    for _ in range(5):
        seen.remember(held)
    blame = seen.accuse(wrap(x * 1e4))
    assert blame is not None and blame.layer == "batch" and seen.accuse(held) is None


def test_what_holds_no_tensor_holds_none() -> None:
    assert tensors_in([None, "a name", 1.0, object(), {}, Images, b"bytes"]) == []
