"""The memory of torch's generator on the host: a Mersenne Twister, and normal numbers that are drawn ahead.

It is looked at through a view, as those of numpy and Python are, since the getter enters a library and makes a tensor.
That it is laid out as it is known to be is checked once, with a generator that is nobody's.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORDS = 624
_BYTES_OF_STATE = 5056
"""Bytes that the getter makes of a state."""
_HEAD = struct.Struct("=Qi?3xI")
"""In memory: the seed, how many words are left, whether it is seeded, and which word is next; the words follow."""
_AHEAD = struct.Struct("=4xf?3xd?")
"""In memory, behind the words: a float drawn ahead, and whether there is one; the same of a double."""
_SIZE = _HEAD.size + 4 * WORDS + _AHEAD.size
_TOLD_HEAD, _TOLD_AHEAD = struct.Struct("=QiiQ"), struct.Struct("=8xd8xi4xf?3x")
"""What the getter tells before the words and behind them, each word in eight bytes."""
_SEARCHED = 2520
"""Bytes of a generator that are searched for the words; it has more."""


def view_of(generator: torch.Generator) -> Any:
    """Return a view of the memory of a generator on the host; None where it is laid out in another way."""
    if sys.implementation.name != "cpython":
        return None
    at = _where_words_lie()
    if at is None:
        return None
    seen = _view(generator, at)
    return seen if state_of(seen.raw).equal(generator.get_state()) else None


def state_of(found: bytes) -> Tensor:
    """Return the memory of a generator as the tensor that its getter makes."""
    words = np.frombuffer(found, dtype=np.uint32, count=WORDS, offset=_HEAD.size)
    single, has_single, double, has_double = _AHEAD.unpack_from(found, _HEAD.size + words.nbytes)
    ahead = double if has_double else 0.0, has_double, single if has_single else 0.0, has_single
    told = _TOLD_HEAD.pack(*_HEAD.unpack_from(found)) + words.astype(np.uint64).tobytes() + _TOLD_AHEAD.pack(*ahead)
    return torch.frombuffer(bytearray(told), dtype=torch.uint8)


def _where_words_lie() -> int | None:
    """Return at which byte of a generator its words begin; None where they, or what is beside them, are not found."""
    own = torch.Generator()
    own.manual_seed(5489)
    told = own.get_state().numpy().tobytes()
    if len(told) != _BYTES_OF_STATE:
        return None
    words = np.frombuffer(told, dtype=np.uint64, count=WORDS, offset=_TOLD_HEAD.size).astype(np.uint32).tobytes()
    # A generator may be followed by memory that is not ours, so that not all of the words are looked for.
    at = ctypes.string_at(_address(own), _SEARCHED).find(words[: _SEARCHED - 160])
    if at < _HEAD.size:
        return None
    for ahead in ((0.0, 0, 0.0, False), (0.25, 1, 0.0, False), (0.0, 0, 0.5, True), (0.25, 1, 0.5, True)):
        changed = told[: _BYTES_OF_STATE - _TOLD_AHEAD.size] + _TOLD_AHEAD.pack(*ahead)
        own.set_state(torch.frombuffer(bytearray(changed), dtype=torch.uint8))
        if state_of(_view(own, at).raw).numpy().tobytes() != changed:
            return None
    return at


def _address(generator: torch.Generator) -> int:
    """Return where the generator lies to which a Python object points: the pointer follows the object's head."""
    return ctypes.c_void_p.from_address(id(generator) + object.__basicsize__).value or 0


def _view(generator: torch.Generator, at: int) -> Any:
    return (ctypes.c_char * _SIZE).from_address(_address(generator) + at - _HEAD.size)
