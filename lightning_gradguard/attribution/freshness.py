"""Whether a run is fresh from its initialisation: only then may anything be drawn anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.names import kind_of

LEAST_SIDE, MOST_SIDE = 4, 512
"""Rows and columns that a matrix must have to tell anything, and that are looked at."""
LEAST_SIZE = 64
"""Elements that a matrix must have to tell anything."""
SIGMAS = 5.0
"""Standard deviations that the energies of rows or columns may spread by beyond those of independent draws."""
EDGE = 1.25
"""Times the largest singular value of independent draws, squared, that finite matrices reach."""
SHARE = 2.0 / 3.0
"""Share of the matrices that must look drawn: a fault may have struck some, training strikes nearly all."""


def untouched(module: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether nobody has trained this module yet, as far as counters and flags tell.

    A frozen part has been trained elsewhere; an optimizer that has counted steps, or a normalisation that has counted
    batches, speaks for itself.
    """
    if any(not p.requires_grad for p in module.parameters()):
        return False
    for layer in module.modules():
        gain = getattr(layer, "weight", None) if kind_of(layer) == "norm" else None
        # A gain begins as a constant, and no two of its elements are trained alike.
        if (
            isinstance(gain, Tensor)
            and not is_lazy(gain)
            and gain.numel() > 1
            and not gain.is_meta
            and bool((gain != gain.flatten()[0]).any())
        ):
            return False
        counted = layer.num_batches_tracked if isinstance(layer, _NormBase) else None
        if counted is not None and not counted.is_meta and int(counted) > 0:
            return False
    return not any(_worked(entry) for entry in optimizer.state.values())


def _worked(entry: Any) -> bool:
    # Adagrad makes its state, with a count of zero, before its first step.
    step = entry.get("step") if isinstance(entry, Mapping) else None
    return bool(entry) if step is None else float(step) > 0


@torch.no_grad()
def drawn(weights: Iterable[Tensor]) -> bool:
    """Return whether most of these weights are independent draws of any scale; False where that cannot be told.

    Training gives a matrix rows, columns and directions that stand out. Of independent draws the energies of rows and
    columns spread as their fourth moment foretells, and no singular value lies above the edge of Marchenko and Pastur
    (1967). A constant matrix is not the work of training either.

    Args:
        weights: Parameters of any shape and device; those of fewer than two dimensions, or too few elements, tell
            nothing.
    """
    found = [tells for weight in weights if (tells := _drawn(weight)) is not None]
    return bool(found) and sum(found) >= SHARE * len(found)


def _drawn(weight: Tensor) -> bool | None:
    if weight.dim() < 2 or weight.numel() < LEAST_SIZE or weight.is_complex() or not weight.is_floating_point():
        return None
    matrix = weight.detach().flatten(1)[:MOST_SIDE, :MOST_SIDE].cpu().double()
    if min(matrix.shape) < LEAST_SIDE or not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        return None
    mean = matrix.mean()
    centred = matrix - mean
    variance = float(centred.square().mean())
    if variance < 1e-4 * float(mean.square()):
        return True
    kurtosis = float(centred.pow(4).mean()) / variance**2
    if not all(_even(centred.square().mean(axis) / variance, kurtosis, matrix.shape[axis]) for axis in (0, 1)):
        return False
    rows, columns = matrix.shape
    edge = (1.0 + math.sqrt(min(rows, columns) / max(rows, columns))) ** 2
    largest = float(torch.linalg.matrix_norm(centred, 2)) ** 2 / (variance * max(rows, columns))
    # Largest singular values fluctuate by the power -2/3 of the side (Johnstone, 2001), and more with heavy tails.
    allowed = EDGE + 2.0 * min(rows, columns) ** (-2.0 / 3.0) + max(kurtosis - 3.0, 0.0) / math.sqrt(min(rows, columns))
    return bool(largest <= allowed * edge)


def _even(energies: Tensor, kurtosis: float, terms: int) -> bool:
    """Return whether row (or column) energies spread no more than means of ``terms`` squared draws do."""
    count = len(energies)
    expected = max(kurtosis - 1.0, 0.1) / terms
    chi = float((energies - 1.0).square().sum()) / expected
    # The energies' own fourth moment is larger than normal for heavy tails.
    return chi <= count + SIGMAS * math.sqrt(2.0 * count) * max(1.0, kurtosis / 3.0)
