"""Batches of every usual kind survive a file that is loaded without executing anything."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lightning_gradguard.evidence.plain import plain, rebuilt, size_of
from tests.builders import same, through_a_file

Point = collections.namedtuple("Point", "x y")


@dataclass
class Graph:
    x: Tensor
    edges: Tensor


class Strange:
    pass


def kept(batch: Any) -> tuple[Any, list[str]]:
    left_out: list[str] = []
    return rebuilt(through_a_file(plain(batch, left_out))), left_out


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3),
        (torch.ones(3), torch.zeros(2, dtype=torch.int64)),
        [torch.ones(3), "a", 3, None, True],
        {"x": torch.ones(3), "meta": {"id": [1, 2]}, 7: 1.5},
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,)),
    ],
)
def test_plain_containers_come_back_as_they_were(batch: Any) -> None:
    found, left_out = kept(batch)
    assert type(found) is type(batch) and same(found, batch) and left_out == []


def test_objects_come_back_with_the_same_attributes() -> None:
    named, graph = kept((Point(torch.ones(2), 3), Graph(torch.ones(2), torch.zeros(1))))[0]
    assert named.x.tolist() == [1, 1] and named.y == 3 and named._fields == ("x", "y")
    assert graph.x.tolist() == [1, 1] and graph.edges.tolist() == [0]


def test_a_packed_sequence_comes_back_as_one() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.zeros(2, 2)])
    found = kept(packed)[0]
    assert isinstance(found, PackedSequence) and torch.equal(found.data, packed.data)


def test_arrays_and_numpy_numbers_come_back() -> None:
    found = kept({"a": np.arange(3, dtype=np.float32), "b": np.float64(2.5)})[0]
    assert found["a"].dtype == np.float32 and found["a"].tolist() == [0, 1, 2] and found["b"] == 2.5


def test_what_cannot_be_kept_is_named_and_the_rest_kept() -> None:
    found, left_out = kept((torch.ones(2), Strange()))
    assert found[0].tolist() == [1, 1] and found[1] is None
    assert left_out == [f"batch[1] is a {__name__}.Strange, which is not kept"]


def test_a_view_takes_along_what_it_shows_only() -> None:
    left_out: list[str] = []
    copy = plain(torch.zeros(1000, 1000)[:1], left_out)
    assert copy.untyped_storage().nbytes() == 4000


def test_a_batch_that_contains_itself_ends() -> None:
    batch: list[Any] = [torch.ones(1)]
    batch.append(batch)
    assert size_of(batch) >= 4
    assert kept(batch)[1]


def test_the_size_is_that_of_the_tensors() -> None:
    assert size_of({"x": torch.ones(4), "y": [np.ones(2)]}) == 16 + 16
