"""A short digest by which a batch is known again."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.evidence.plain import plain


def digest_of(batch: Any) -> str:
    """Return 16 hexadecimal digits of a batch's numbers, strings, types and shapes; objects count by their place only.

    The batch is copied to host memory, for which an accelerator is waited for.

    Example:
        >>> import torch
        >>> x = torch.arange(6.0)
        >>> digest_of((x, "a")) == digest_of((x.clone(), "a"))
        True
        >>> digest_of((x, "a")) == digest_of((x.reshape(2, 3), "a"))
        False
    """
    told = hashlib.blake2b(digest_size=8)
    _add(told, plain(batch, []))
    return told.hexdigest()


def _add(told: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, Tensor):
        told.update(f"{value.dtype}{tuple(value.shape)}".encode())
        strided = value if value.layout is torch.strided and not value.is_quantized else None
        # repr leaves out most of a tensor, but tells which one it is where its bytes cannot be had.
        told.update(repr(value).encode() if strided is None else _bytes(strided))
    elif isinstance(value, dict):
        for key, part in value.items():
            told.update(f"{key!r}:".encode())
            _add(told, part)
    elif isinstance(value, list):
        told.update(f"[{len(value)}]".encode())
        for part in value:
            _add(told, part)
    else:
        told.update(f"{value!r},".encode())


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return whole.view(torch.uint8).numpy().tobytes()
