"""Finding the samples of a batch that make a step fail, by halving it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

MOST_REPEATS = 64
"""Times that a step is computed again to find its samples."""


def count(batch: Any) -> int | None:
    """Return how many samples a batch holds, the first size that most of its tensors share, or None if unclear."""
    sizes = [len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not sizes:
        return None
    most = max(set(sizes), key=lambda size: (sizes.count(size), size))
    return most if sizes.count(most) * 2 > len(sizes) or len(set(sizes)) == 1 else None


def take(batch: Any, rows: Sequence[int]) -> Any:
    """Return the batch of some of the samples."""
    return mixed(batch, batch, rows, rows)


def mixed(batch: Any, other: Any, rows: Sequence[int], places: Sequence[int]) -> Any:
    """Return a batch that holds sample ``places[i]`` at ``i``: of ``batch``, or of ``other`` if it is not in ``rows``.

    Args:
        batch: A batch.
        other: Another of the same structure, whose samples are counted through again and again.
        rows: The samples of ``batch`` that are used.
        places: For each place the sample of ``batch`` that stood there.
    """
    ours, structure = tree_flatten(batch)
    theirs = tree_leaves(other)
    size, wanted = count(batch), set(rows)
    spare = count(other) or 1
    index = torch.tensor([row if row in wanted else -1 - (i % spare) for i, row in enumerate(places)])
    leaves = []
    for mine, stand_in in zip(ours, theirs, strict=True):
        if isinstance(mine, Tensor) and mine.ndim > 0 and len(mine) == size:
            parts = [mine[row] if row >= 0 else stand_in[-1 - row] for row in index.tolist()]
            leaves.append(torch.stack(parts))
        else:
            leaves.append(mine)
    return tree_unflatten(leaves, structure)


def can_mix(batch: Any, other: Any) -> bool:
    """Return whether samples of one batch can stand in for those of another."""
    if other is None or count(other) is None:
        return False
    mine, structure = tree_flatten(batch)
    theirs, other_structure = tree_flatten(other)
    return bool(structure == other_structure) and all(
        a.shape[1:] == b.shape[1:] and a.dtype == b.dtype
        for a, b in zip(mine, theirs, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim > 0
    )


def guilty(rows: Sequence[int], fails: Callable[[Sequence[int]], bool], most: int = MOST_REPEATS) -> tuple[int, ...]:
    """Return the samples that fail by themselves, or together, without any of the others; nothing where none does.

    Args:
        rows: The samples, which fail together.
        fails: Whether some of them fail, the others being harmless.
        most: Times that may be asked.

    Example:
        >>> guilty(range(8), lambda rows: 5 in rows)
        (5,)
    """
    left = [most]

    def among(some: Sequence[int]) -> tuple[int, ...]:
        """Return the guilty of some that fail together."""
        if len(some) == 1:
            return tuple(some)
        middle = len(some) // 2
        found: tuple[int, ...] = ()
        for half in (some[:middle], some[middle:]):
            left[0] -= 1
            if left[0] >= 0 and fails(half):
                found += among(half)
        # Neither half fails alone: it takes some of both.
        return found or tuple(some)

    return among(list(rows))
