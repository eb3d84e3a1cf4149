"""The size of a tensor, measured so that neither overflow nor low precision spoils it."""

from __future__ import annotations

import torch
from torch import Tensor


def rms(tensor: Tensor) -> Tensor:
    """Return the root mean square as a 0-d tensor on the tensor's device, in float32 or float64, without a sync.

    The tensor is divided by its largest magnitude first, so finite values never overflow. Inf gives inf or NaN, NaN gives NaN.
    """
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    peak: Tensor = torch.linalg.vector_norm(tensor, float("inf"))
    unit: Tensor = tensor / peak.clamp_min(torch.finfo(tensor.dtype).tiny)
    size: Tensor = torch.linalg.vector_norm(unit)
    return torch.mul(peak, size / tensor.numel() ** 0.5)


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
