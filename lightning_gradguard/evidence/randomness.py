"""The random states of torch, numpy and Python, read without advancing any of them, and put back.

They are read before every forward pass, and the getters of numpy and Python take seventy and twenty microseconds. Both
keep a Mersenne Twister, whose memory is read in less than one; that it lies where it is known to lie is checked once,
and else the getters are used.
"""

from __future__ import annotations

import _random
import ctypes
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TWISTER_WORDS = 624
"""Words of a Mersenne Twister; numpy keeps them in one piece, and a count of those that are used up behind."""
_TWISTER = np.random.MT19937
_RAW = 4 * TWISTER_WORDS + 4
_PYTHON: Any = random.random.__self__  # type: ignore[attr-defined]


class RandomStates(NamedTuple):
    """The random states at one moment.

    Args:
        torch: That of torch on the host.
        numpy: That of ``numpy.random``: its memory, or what ``get_state`` says of a generator of another kind.
        python: That of ``random``: its memory and what else it keeps, or what ``getstate`` says.
        devices: Those of accelerators, by device name.
    """

    torch: Tensor
    numpy: bytes | dict[str, Any]
    python: tuple[Any, ...]
    devices: tuple[tuple[str, Tensor], ...] = ()


def read(devices: Iterable[torch.device] = ()) -> RandomStates:
    """Return the random states of now.

    Args:
        devices: Accelerators whose states are read too; a CUDA device's lies on the host, so nothing is waited for.
    """
    there = tuple((str(device), _generator(device).get_state()) for device in devices if device.type == "cuda")
    return RandomStates(torch.default_generator.get_state(), _numpy(), _python(), there)


def put_back(states: RandomStates) -> None:
    """Set all random states to what they were; that of an accelerator which this machine lacks is left out."""
    torch.default_generator.set_state(states.torch)
    np.random.set_state(_numpy_state(states.numpy))
    random.setstate(_python_state(states.python))
    for name, state in states.devices:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            _generator(device).set_state(state)


@contextmanager
def as_they_were(states: RandomStates) -> Iterator[None]:
    """Compute with the random states of another moment, and leave those of now as they are."""
    devices = [torch.device(name) for name, _ in states.devices]
    now = read(device for device in devices if (device.index or 0) < torch.cuda.device_count())
    put_back(states)
    try:
        yield
    finally:
        put_back(now)


def plain(states: RandomStates) -> dict[str, Any]:
    """Return the states as tensors, numbers and strings only."""
    version, words, gauss = _python_state(states.python)
    numpy = _numpy_state(states.numpy)
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
        (python["version"], tuple(python["words"].tolist()), python["gauss"]),
        tuple(data["devices"].items()),
    )


def _generator(device: torch.device) -> torch.Generator:
    found: torch.Generator = torch.cuda.default_generators[device.index or 0]
    return found


def _bit_generator() -> Any:
    return np.random.get_bit_generator()  # type: ignore[attr-defined]


def _python() -> tuple[Any, ...]:
    if not _layout_known("python", _python_as_known):
        return random.getstate()
    return ctypes.string_at(id(_PYTHON) + object.__basicsize__, _RAW), _PYTHON.gauss_next


def _python_as_known() -> bool:
    """Return whether Python's state follows the head of its object: words that are used up, and the words."""
    fits = sys.implementation.name == "cpython" and _random.Random.__basicsize__ >= object.__basicsize__ + _RAW
    if not fits:
        return False
    raw = ctypes.string_at(id(_PYTHON) + object.__basicsize__, _RAW)
    return _python_state((raw, _PYTHON.gauss_next)) == random.getstate()


def _python_state(found: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(found[0], bytes):
        return found
    index, *words = np.frombuffer(found[0], dtype=np.uint32).tolist()
    return random.Random.VERSION, (*words, index), found[1]


def _numpy() -> bytes | dict[str, Any]:
    generator = _bit_generator()
    if type(generator) is not _TWISTER or not _layout_known("numpy", _numpy_as_known):
        found: dict[str, Any] = np.random.get_state(legacy=False)
        return found
    if _ADDRESS.get(0) is not generator:
        _ADDRESS[0], _ADDRESS[1] = generator, generator.ctypes.state_address
    return ctypes.string_at(_ADDRESS[1], _RAW)


_ADDRESS: dict[int, Any] = {}
"""The generator that was read last, and where its state lies: asking it anew costs more than reading."""
_KNOWN: dict[str, bool] = {}


def _layout_known(of: str, look: Callable[[], bool]) -> bool:
    """Return whether a state's memory is laid out as it is known to be; asked once."""
    if of not in _KNOWN:
        _KNOWN[of] = look()
    return _KNOWN[of]


def _numpy_as_known() -> bool:
    generator, told = _bit_generator(), np.random.get_state(legacy=False)
    state = told["state"]
    return _words(ctypes.string_at(generator.ctypes.state_address, _RAW)) == (state["key"].tolist(), state["pos"])


def _words(raw: bytes) -> tuple[list[int], int]:
    words = np.frombuffer(raw, dtype=np.uint32)
    return words[:TWISTER_WORDS].tolist(), int(words[TWISTER_WORDS])


def _numpy_state(found: bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    key, pos = _words(found)
    # The second half of a pair that the polar method draws lies elsewhere, where it cannot be read cheaply: it is drawn
    # anew.
    state = {"key": np.array(key, dtype=np.uint32), "pos": pos}
    return {"bit_generator": "MT19937", "state": state, "has_gauss": 0, "gauss": 0.0}
