"""A batch as tensors, numbers, strings and plain containers, which are loaded without executing anything, and back."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

KIND = "gradguard kind"
"""Key of a dict that stands for something else."""
DEEPEST_NESTING = 32


def plain(value: Any, left_out: list[str], where: str = "batch", depth: int = 0) -> Any:
    """Return a copy of ``value`` in host memory that ``torch.load(weights_only=True)`` can load.

    Args:
        value: A batch, or part of one.
        left_out: Told, in a sentence each, of parts that cannot be kept; None stands in their places.
        where: What to call it.
        depth: How deep it lies.
    """
    if value is None or type(value) in (bool, int, float, str, complex):
        return value
    if isinstance(value, Tensor):
        return host_copy(value)
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float, str, complex)):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # A copy, since not every array may be written to.
        return {KIND: "ndarray", "value": torch.from_numpy(np.array(value))}
    if depth < DEEPEST_NESTING and (parts := _parts(value)) is not None:
        kind, name, fields = parts
        kept = {key: plain(part, left_out, f"{where}[{key!r}]", depth + 1) for key, part in fields.items()}
        if kind == "dict":
            return kept
        return list(kept.values()) if kind == "list" else {KIND: kind, "name": name, "fields": kept}
    left_out.append(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which is not kept")
    return None


def _parts(value: Any) -> tuple[str, str, dict[Any, Any]] | None:
    """Return what kind of container this is, its name, and what is in it by key; None where it is none."""
    name = type(value).__name__
    if isinstance(value, PackedSequence):
        return "packed", name, value._asdict()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "namedtuple", name, dict(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return ("list" if isinstance(value, list) else "tuple"), name, dict(enumerate(value))
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        return "dict", name, dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "object", name, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def rebuilt(data: Any) -> Any:
    """Return what :func:`plain` was given: objects of a dataclass as plain ones with the same attributes.

    No class is looked up by its name, since a file may name any.
    """
    if isinstance(data, list):
        return [rebuilt(item) for item in data]
    if not isinstance(data, dict):
        return data
    kind = data.get(KIND)
    if kind is None:
        return {key: rebuilt(item) for key, item in data.items()}
    if kind == "ndarray":
        return data["value"].numpy()
    fields = {key: rebuilt(item) for key, item in data["fields"].items()}
    if kind == "tuple":
        return tuple(fields.values())
    if kind == "packed":
        return PackedSequence(*fields.values())
    if kind == "namedtuple":
        return collections.namedtuple(data["name"], list(fields))(**fields)
    return SimpleNamespace(**fields)


@torch.no_grad()
def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in host memory: of a view only what it shows, of a shard this process's."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    own = own.detach()
    return own.clone() if own.is_cpu else own.cpu()


def size_of(value: Any, depth: int = 0) -> int:
    """Return the bytes of all tensors and arrays in a batch, or in what :func:`plain` made of one."""
    if isinstance(value, Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    parts = _parts(value) if depth < DEEPEST_NESTING else None
    return 0 if parts is None else sum(size_of(part, depth + 1) for part in parts[2].values())
