"""A checksum changes with any bit, and tells which rank has parted from the others."""

from __future__ import annotations

import pytest
import torch

from lightning_gradguard.statistics.checksum import checksums, parted

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_seen(dtype: torch.dtype, bit: int) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    flipped = tensor.clone()
    flipped.view(-1).view(torch.uint8)[5] ^= 1 << bit
    assert checksums([tensor]) == checksums([tensor.clone()]) != checksums([flipped])


def test_nothing_has_no_checksum() -> None:
    assert checksums([]) == []
    assert checksums([torch.ones(0), torch.ones(2, 3).t()]) == checksums([torch.ones(0), torch.ones(3, 2)])


@pytest.mark.parametrize(
    ("found", "ranks", "places"),
    [
        ([[1, 2]] * 4, [], []),
        ([[1, 2], [1, 2], [3, 2], [1, 2]], [2], [0]),
        ([[1, 2], [1, 2], [3, 2], [1, 4], [1, 2]], [2, 3], [0, 1]),
        ([[1, 2], [1, 2], [3, 2], [3, 2]], [0, 1, 2, 3], [0]),
    ],
)
def test_the_ranks_that_are_not_as_most_have_parted(
    found: list[list[int]], ranks: list[int], places: list[int]
) -> None:
    assert parted(found) == (ranks, places)
