"""From gradients to statistics: one multi-tensor pass, one transfer to the host.

The fast reading (:func:`gradient_norms`) runs every step. The forensic one (:func:`examine`) runs on suspicion
only: it costs several passes, never overflows, and counts non-finite elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradguard.records import FloatArray

EXAMINED_AT_ONCE = 2**20
"""Elements that are examined at a time."""
NARROW = frozenset({"mps"})
"""Devices that know no float64, whose pieces are examined on the host."""


def local(tensor: Tensor) -> Tensor:
    """Return the dense, real values behind a gradient or parameter: its shard, its stored values, its real view."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.is_sparse:
        # Uncoalesced duplicates must be summed before a norm is taken of them.
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor


def can_sum_over_shards() -> bool:
    """Return whether this torch has a public DTensor."""
    try:
        from torch.distributed.tensor import DTensor  # noqa: F401
    except ImportError:
        return False
    return True


def _over_shards(tensors: list[Tensor], values: Tensor) -> Tensor:
    """Sum one value for each tensor over the processes that hold its shards: one small reduction a mesh."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            split = tuple(placement.is_shard() for placement in tensor.placements)
            groups.setdefault((tensor.device_mesh, split), []).append(i)
    for (mesh, split), indices in groups.items():
        placements = [Partial() if cut else Replicate() for cut in split]
        # A list as an index would be copied to the device, and waited for.
        index = torch.tensor(indices, pin_memory=values.is_cuda).to(values.device, non_blocking=True)
        mine = values.index_select(0, index).to(mesh.device_type)
        found = DTensor.from_local(mine, mesh, placements, run_check=False).full_tensor()
        values.index_copy_(0, index, found.to(values))
    return values


def _norm_over_shards(tensors: list[Tensor], norms: Tensor) -> Tensor:
    return _over_shards(tensors, norms.double().square()).sqrt()


def gradient_norms(grads: list[Tensor], *, sharded: bool = False) -> Tensor:
    """Return the L2 norm of each gradient as one tensor.

    Args:
        grads: Gradients of any float or complex dtype, dense or sparse, on one or several devices.
        sharded: True if some of them are DTensors; their norms are then gathered over their mesh.

    Returns:
        Tensor of shape ``(len(grads),)``, float32 (float64 if any gradient is, or is sharded), on the device of the
        first. A finite gradient of more than about 1e19 may read as inf; :func:`examine` tells the two apart.
    """
    if not grads:
        return torch.zeros(0)
    if sharded:
        return _norm_over_shards(grads, gradient_norms([local(g) for g in grads]))
    try:
        # float32 accumulation: float16 norms lose digits and overflow at 65504. Asking forgiveness for sparse,
        # float64, complex and multi-device gradients is cheaper than asking each of a thousand tensors what it is.
        return torch.stack(torch._foreach_norm(grads, 2, torch.float32))
    except (RuntimeError, TypeError, NotImplementedError):
        pass
    wide = any(g.dtype in (torch.float64, torch.complex128) for g in grads)
    dtype = torch.float64 if wide else torch.float32
    device = grads[0].device
    return torch.stack([torch.linalg.vector_norm(local(g), dtype=dtype).to(device, dtype) for g in grads])


def host_norms(grads: list[Tensor], *, sharded: bool = False) -> FloatArray:
    """Return :func:`gradient_norms` as float64 on the host: the one deliberate wait, all norms in one transfer."""
    if grads and not sharded and grads[0].is_cpu:
        try:
            # Nothing to wait for, and a thousand numbers are read faster than they are stacked.
            norms = torch._foreach_norm(grads, 2, torch.float32)
            return np.fromiter(map(Tensor.item, norms), dtype=np.float64, count=len(norms))
        except (RuntimeError, TypeError, NotImplementedError):
            pass
    return gradient_norms(grads, sharded=sharded).cpu().numpy().astype(np.float64)


def global_norm(norms: FloatArray) -> float:
    """Return the root of the sum of squares of float64 ``norms``; NaN if any is NaN, else inf if any is inf."""
    return math.sqrt(norms.dot(norms))


def exact_norm(tensor: Tensor) -> tuple[float, int]:
    """Return the float64 norm and the count of non-finite elements, with little memory: there may be none to spare."""
    # A norm in float64 first makes a copy of what it reads, of a float32 gradient one twice its size. Numbers, not
    # tensors, are kept: small tensors between the copies would keep their memory from being used again.
    norms, count = [], 0
    for piece in torch.split(tensor.reshape(-1), EXAMINED_AT_ONCE):
        piece = piece.cpu() if piece.device.type in NARROW else piece
        norms.append(float(torch.linalg.vector_norm(piece, dtype=torch.float64)))
        count += int((~torch.isfinite(piece)).sum())
    return global_norm(np.array(norms)), count


def examine(grads: list[Tensor], *, sharded: bool = False) -> tuple[FloatArray, list[int]]:
    """Measure gradients slowly and exactly, for use on suspicion.

    Returns:
        The float64 L2 norm of each gradient, and the count of its NaN and inf elements. A norm is NaN or inf only
        if an element is. For DTensors both are gathered over the mesh.
    """
    found = [exact_norm(local(grad)) for grad in grads]
    norms = torch.tensor([norm for norm, _ in found], dtype=torch.float64)
    counts = torch.tensor([count for _, count in found], dtype=torch.float64)
    if sharded:
        norms, counts = _norm_over_shards(grads, norms), _over_shards(grads, counts)
    values: FloatArray = norms.numpy()
    return values, [int(count) for count in counts]
