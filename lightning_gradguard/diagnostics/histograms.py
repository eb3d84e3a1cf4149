"""Histograms of log10 of the absolute gradients by layer, counted where the gradients are.

Only the counts come to the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.statistics.norms import local

LOW, HIGH, PER_DECADE = -46, 39, 4
"""Every finite float32 lies between: from 1.4e-45 to 3.4e38."""
BINS = (HIGH - LOW) * PER_DECADE
EDGES: npt.NDArray[np.float64] = np.linspace(LOW, HIGH, BINS + 1)
_COUNTED_AT_ONCE = 2**24
"""Counts are float32, exact up to here; and no copy is ever larger."""

Counts = npt.NDArray[np.float64]


def count(grads: Sequence[Tensor], grad_scale: float = 1.0) -> Counts:
    """Return how many elements of each gradient lie in each bin of :data:`EDGES`, shape ``(len(grads), BINS)``.

    Zeros, NaN and inf are in no bin. A few kernels a gradient, no wait, and one transfer of a kilobyte a gradient at
    the end.

    Args:
        grads: Gradients on one or several devices; of a DTensor the shard of this process is counted.
        grad_scale: What the gradients are still multiplied by.
    """
    if not grads:
        return np.zeros((0, BINS))
    counted = [_count(local(grad.detach()), grad_scale) for grad in grads]
    # The one wait for the device.
    return torch.stack([one.to(counted[0].device) for one in counted]).cpu().numpy().astype(np.float64)


def _count(grad: Tensor, grad_scale: float) -> Tensor:
    counts = torch.zeros(BINS, device=grad.device, dtype=torch.float32)
    for piece in torch.split(grad.reshape(-1), _COUNTED_AT_ONCE):
        logs = piece.float().abs().div_(grad_scale).log10_()
        # histc leaves out what lies outside, and with it the logarithms of zero, NaN and inf.
        with _any_order():
            counts += torch.histc(logs, bins=BINS, min=LOW, max=HIGH)
    return counts


@contextmanager
def _any_order() -> Iterator[None]:
    """Allow CUDA to count in any order under ``deterministic=True`` too: whole numbers add up to the same in each."""
    strict, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)


def by_layer(names: Sequence[str], counts: Counts) -> dict[str, Counts]:
    """Add up the counts of the parameters of each layer."""
    layers: dict[str, Counts] = {}
    for name, row in zip(names, counts, strict=True):
        layer = layer_of(name) or name
        layers[layer] = layers[layer] + row if layer in layers else row
    return layers


def fields(counts: Counts) -> dict[str, Any] | None:
    """Return the fields of TensorBoard's histogram for one row of counts; None where nothing was counted.

    Sums are taken from the middles of the bins. Empty bins at both ends are left out.
    """
    full = np.flatnonzero(counts)
    if not len(full):
        return None
    first, last = int(full[0]), int(full[-1])
    kept, middles = counts[first : last + 1], (EDGES[:-1] + EDGES[1:])[first : last + 1] / 2
    return {
        "min": float(EDGES[first]),
        "max": float(EDGES[last + 1]),
        "num": float(kept.sum()),
        "sum": float(kept @ middles),
        "sum_squares": float(kept @ middles**2),
        # The first bucket is an empty one that ends where the counts begin: TensorBoard keeps right edges only.
        "bucket_limit": EDGES[first : last + 2].tolist(),
        "bucket": [0.0, *kept.tolist()],
    }
