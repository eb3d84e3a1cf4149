"""Tensors of which each process holds a part: the whole of one, and the way back.

Every process must call these at the same point, for the same tensor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, of which this process may hold a part only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Return all of a tensor; of one that is not sharded the tensor itself."""
    full: Tensor = tensor.full_tensor() if sharded(tensor) else tensor
    return full


def gathered(part: Tensor, like: Any) -> Tensor:
    """Return the whole that the processes' parts make up, if they are cut as ``like`` is; the part itself if that is not sharded."""
    if not sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mine = part.to(like.to_local().device)
    return whole(
        DTensor.from_local(
            mine, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    )


def as_part(part: Tensor, like: Any) -> Tensor:
    """Return this process's part as the sharded tensor that it is a part of, if ``like`` is sharded and cut to the same shape."""
    if not sharded(like) or not part.dim() or part.shape != like.to_local().shape:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def cut(value: Tensor, like: Any) -> Tensor:
    """Return this process's part of a whole value, if ``like`` is sharded and of its shape; else the value itself."""
    if not sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(value.to(like.to_local().device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    # What every process has whole is cut without a word between them.
    mine: Tensor = everywhere.redistribute(placements=like.placements).to_local()
    return mine.to(value.device, copy=True)


def write(target: Any, value: Tensor) -> None:
    """Copy a whole value into a tensor: of a sharded one each process copies its own part."""
    (target.to_local() if sharded(target) else target).copy_(cut(value, target))


def comparable(part: Tensor, like: Any) -> bool:
    """Tell whether a part has the shape of this process's part of ``like``."""
    return bool(part.shape == (like.to_local() if sharded(like) else like).shape)
