"""The size of a tensor, measured so that neither overflow nor low precision spoils it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

COPIED_AT_ONCE = 2**21
"""Elements that are copied at a time: in an explosion there may be no memory for a whole layer or activation."""


def square(value: float) -> float:
    """Return the square, which overflows to inf where ``value**2`` raises.

    >>> square(1e200)
    inf
    """
    return value * value


def rms(tensor: Tensor) -> Tensor:
    """Return the root mean square as a 0-d tensor on the tensor's device, in float32 or float64, without a sync.

    The tensor is divided by its largest magnitude first, so finite values never overflow. Inf gives inf or NaN, NaN
    gives NaN.
    """
    if tensor.numel() > COPIED_AT_ONCE:
        return joined(rms(piece) * (piece.numel() / tensor.numel()) ** 0.5 for piece in pieces(tensor))
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    peak: Tensor = torch.linalg.vector_norm(tensor, float("inf"))
    unit: Tensor = tensor / peak.clamp_min(torch.finfo(tensor.dtype).tiny)
    size: Tensor = torch.linalg.vector_norm(unit)
    return torch.mul(peak, size / tensor.numel() ** 0.5)


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield views of at most :data:`COPIED_AT_ONCE` elements that together are the tensor, cut along its first axes."""
    if tensor.numel() <= COPIED_AT_ONCE:
        yield tensor
        return
    for rows in torch.split(tensor, max(1, COPIED_AT_ONCE * len(tensor) // tensor.numel())):
        yield from [rows] if rows.numel() <= COPIED_AT_ONCE else pieces(rows[0])


def joined(parts: Iterable[Tensor]) -> Tensor:
    """Return the root of the sum of squares of the 0-d tensors that were measured piece by piece."""
    column = kept(parts)
    return torch.mul(rms(column), len(column) ** 0.5)


def kept(parts: Iterable[Tensor]) -> Tensor:
    """Stack 0-d tensors as they are made."""
    # On the host a number each: small tensors between the copies of pieces would keep their memory from being used
    # again.
    found: list[Any] = [part.item() if part.is_cpu else part for part in parts]
    return torch.stack(found) if isinstance(found[0], Tensor) else torch.tensor(found, dtype=torch.float64)


def to_host(values: list[Tensor]) -> list[float]:
    """Bring 0-d tensors to the host in one transfer per device."""
    found = [0.0] * len(values)
    places: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        places.setdefault(value.device, []).append(index)
    for device, indices in places.items():
        dtype = torch.float32 if device.type == "mps" else torch.float64
        column = torch.stack([values[i].to(dtype) for i in indices])
        for index, number in zip(indices, column.tolist(), strict=True):  # the one sync
            found[index] = number
    return found
