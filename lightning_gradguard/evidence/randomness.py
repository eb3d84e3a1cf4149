"""The random states of torch, numpy and Python. One idea: they are read without advancing any, and put back.

They are read before every forward pass, of a loop that has emptied the processor's caches, where the getters of numpy
and Python would take most of a hundred microseconds. Both keep a Mersenne Twister, and its memory is looked at through
views that are made once: each further function or library that is entered costs microseconds there. That the memory is
laid out as it is known to be is checked once, and else the getters are used.
"""

from __future__ import annotations

import _random
import ctypes
import random
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TWISTER_WORDS = 624
"""Words of a Mersenne Twister; numpy keeps them in one piece, and a count of those that are used up behind."""
_RAW = 4 * TWISTER_WORDS + 4
_DRAWN_AHEAD = struct.Struct("=i4xd")
"""Whether the second of a pair of normal numbers waits to be used, and the number, as numpy keeps them in one piece."""
_TWISTER = np.random.MT19937
_NUMPY: Any = np.random.mtrand._rand
_PYTHON: Any = random.random.__self__  # type: ignore[attr-defined]


class RandomStates(NamedTuple):
    """The random states at one moment, in one flat tuple: to make more objects costs microseconds.

    Args:
        torch: That of torch on the host.
        numpy: That of ``numpy.random``: its memory, or what ``get_state`` says.
        ahead: The memory of a normal number that numpy has drawn ahead; empty where ``get_state`` has said it.
        python: That of ``random``: its memory, or what ``getstate`` says.
        gauss: A normal number that Python has drawn ahead, or None; None too where ``getstate`` has said it.
        devices: Those of accelerators, by device name.
    """

    torch: Tensor
    numpy: bytes | dict[str, Any]
    ahead: bytes
    python: bytes | tuple[Any, ...]
    gauss: float | None = None
    devices: tuple[tuple[str, Tensor], ...] = ()


def read(devices: Sequence[torch.device] = ()) -> RandomStates:
    """Return the random states of now.

    Args:
        devices: Accelerators whose states are read too; a CUDA device's lies on the host, so nothing is waited for.
    """
    there = tuple((str(one), _generator(one).get_state()) for one in devices if one.type == "cuda") if devices else ()
    memory, torch_state = _WHERE, torch.default_generator.get_state()
    if memory.python is None or _NUMPY._bit_generator is not memory.generator:
        return RandomStates(torch_state, *memory.numpy_anew(), *memory.python_anew(), there)
    # Not by RandomStates(...), which is a function of its own.
    found = torch_state, memory.words.raw, memory.ahead.raw, memory.python.raw, _PYTHON.gauss_next, there
    return tuple.__new__(RandomStates, found)


def put_back(states: RandomStates) -> None:
    """Set all random states to what they were; that of an accelerator which this machine lacks is left out."""
    torch.default_generator.set_state(states.torch)
    np.random.set_state(_numpy_state(states.numpy, states.ahead))
    random.setstate(_python_state(states.python, states.gauss))
    for name, state in states.devices:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            _generator(device).set_state(state)


@contextmanager
def as_they_were(states: RandomStates) -> Iterator[None]:
    """Compute with the random states of another moment, and leave those of now as they are."""
    devices = [torch.device(name) for name, _ in states.devices]
    now = read([device for device in devices if (device.index or 0) < torch.cuda.device_count()])
    put_back(states)
    try:
        yield
    finally:
        put_back(now)


def plain(states: RandomStates) -> dict[str, Any]:
    """Return the states as tensors, numbers and strings only."""
    version, words, gauss = _python_state(states.python, states.gauss)
    numpy = _numpy_state(states.numpy, states.ahead)
    if numpy["bit_generator"] != "MT19937":
        raise TypeError(f"numpy.random draws from a {numpy['bit_generator']}, whose state is not known here")
    return {
        "torch": states.torch,
        "numpy": {
            "key": torch.from_numpy(np.asarray(numpy["state"]["key"], dtype=np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": {"version": int(version), "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "devices": dict(states.devices),
    }


def from_plain(data: dict[str, Any]) -> RandomStates:
    """Return the states that :func:`plain` was given."""
    numpy, python = data["numpy"], data["python"]
    key = numpy["key"].numpy().astype(np.uint32)
    state = {"bit_generator": "MT19937", "state": {"key": key, "pos": numpy["pos"]}}
    return RandomStates(
        data["torch"],
        {**state, "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]},
        b"",
        (python["version"], tuple(python["words"].tolist()), python["gauss"]),
        None,
        tuple(data["devices"].items()),
    )


def _generator(device: torch.device) -> torch.Generator:
    found: torch.Generator = torch.cuda.default_generators[device.index or 0]
    return found


class _Memory:
    """Where numpy and Python keep the states of their twisters.

    Attributes:
        generator: The generator of ``numpy.random`` whose memory is known; None where none is.
        words: Its words, and how many are used up.
        ahead: The normal number drawn ahead.
        python: Of ``random``, how many words are used up, and the words; None where it is not known.
    """

    def __init__(self) -> None:
        # A generator that is kept here keeps its memory too, so that no other can lie where it lay.
        self.generator: Any = None
        self.words: Any = None
        self.ahead: Any = None
        self.python: Any = None
        self._looked = False
        self._ahead_at: int | None = None

    def numpy_anew(self) -> tuple[bytes | dict[str, Any], bytes]:
        """Return numpy's state where its generator is another one than before."""
        self._look_once()
        told: dict[str, Any] = np.random.get_state(legacy=False)
        generator = getattr(_NUMPY, "_bit_generator", None)
        if type(generator) is not _TWISTER or self._ahead_at is None:
            return told, b""
        words, ahead = _view(generator.ctypes.state_address, _RAW), _view(id(_NUMPY) + self._ahead_at, 16)
        found = words.raw, ahead.raw
        if not _same(_numpy_state(*found), told):
            return told, b""
        self.generator, self.words, self.ahead = generator, words, ahead
        return found

    def python_anew(self) -> tuple[bytes | tuple[Any, ...], float | None]:
        """Return Python's state."""
        self._look_once()
        return (random.getstate(), None) if self.python is None else (self.python.raw, _PYTHON.gauss_next)

    def _look_once(self) -> None:
        """Find out, once, whether memory is laid out as it is known to be."""
        if self._looked or sys.implementation.name != "cpython":
            return
        self._looked, self._ahead_at = True, _where_drawn_ahead()
        # Python's state follows the head of its object.
        if _random.Random.__basicsize__ >= object.__basicsize__ + _RAW:
            seen = _view(id(_PYTHON) + object.__basicsize__, _RAW)
            if _python_state(seen.raw, _PYTHON.gauss_next) == random.getstate():
                self.python = seen


def _view(address: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(address)


def _where_drawn_ahead() -> int | None:
    """Return at which byte of its object numpy keeps a normal number drawn ahead; None where it is not found."""
    # In one that is nobody's, since the second of its pair has to be waiting.
    own = np.random.RandomState(0)
    own.standard_normal()
    size = type(own).__basicsize__
    seen = ctypes.string_at(id(own), size)
    at = seen.find(_DRAWN_AHEAD.pack(1, own.get_state(legacy=False)["gauss"]))
    own.standard_normal()
    used = ctypes.string_at(id(own), size)
    return at if at >= 0 and _DRAWN_AHEAD.unpack_from(used, at)[0] == 0 else None


_WHERE = _Memory()


def _python_state(found: bytes | tuple[Any, ...], gauss: float | None) -> tuple[Any, ...]:
    if not isinstance(found, bytes):
        return found
    index, *words = np.frombuffer(found, dtype=np.uint32).tolist()
    return random.Random.VERSION, (*words, index), gauss


def _numpy_state(found: bytes | dict[str, Any], ahead: bytes) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    words = np.frombuffer(found, dtype=np.uint32)
    waits, number = _DRAWN_AHEAD.unpack(ahead)
    state = {"key": words[:TWISTER_WORDS].copy(), "pos": int(words[TWISTER_WORDS])}
    # What has been used stays in memory.
    return {"bit_generator": "MT19937", "state": state, "has_gauss": waits, "gauss": number if waits else 0.0}


def _same(one: dict[str, Any], told: dict[str, Any]) -> bool:
    """Return whether what memory holds is what numpy tells of its state."""
    keys = np.array_equal(one["state"]["key"], told["state"]["key"]) and one["state"]["pos"] == told["state"]["pos"]
    waits = one["has_gauss"] == told["has_gauss"]
    return keys and waits and (not one["has_gauss"] or one["gauss"] == told["gauss"])
