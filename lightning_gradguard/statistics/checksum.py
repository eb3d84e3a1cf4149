"""Checksums of parameters, exact to the bit, and which processes' differ from the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksums(tensors: Iterable[Tensor]) -> list[int]:
    """Return for each tensor the sum of its elements' bits, read as integers, in 64 bits; one flipped bit changes it.

    Summed on the tensors' device, which is waited for once; a complex tensor counts as its real parts.
    """
    sums = [_bits(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors]
    return [int(value) for value in torch.stack([s.cpu() for s in sums]).tolist()] if sums else []


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.contiguous().view(_INTEGERS[real.element_size()])


def parted(found: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return the ranks whose checksums are not those of most, and the positions that differ between any two ranks.

    Where no more than half of the ranks agree, which of them are right cannot be told, and all are returned.

    Args:
        found: The checksums of each rank.

    Example:
        >>> parted([[1, 2], [1, 2], [1, 7]])
        ([2], [1])
        >>> parted([[1, 2], [1, 7]])
        ([0, 1], [1])
        >>> parted([[1, 2], [1, 2]])
        ([], [])
    """
    kinds = Counter(map(tuple, found))
    if len(kinds) == 1:
        return [], []
    most, count = kinds.most_common(1)[0]
    ranks = [rank for rank, one in enumerate(found) if 2 * count <= len(found) or tuple(one) != most]
    return ranks, [at for at, column in enumerate(zip(*found, strict=True)) if len(set(column)) > 1]
