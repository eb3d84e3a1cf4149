"""The random states of torch, numpy and Python, read without advancing any of them, and put back.

They are read before every forward pass, so by the cheapest way that each library offers: numpy's own getter takes seventy microseconds,
its state's memory less than one.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORDS = 624
"""Words of a Mersenne Twister; numpy keeps them in one piece, and a count of those that are used up behind."""
_TWISTER = np.random.MT19937
_RAW = 4 * WORDS + 4


@dataclass(frozen=True, slots=True)
class RandomStates:
    """The random states at one moment.

    Args:
        torch: That of torch on the host.
        numpy: That of ``numpy.random``: its memory, or what ``get_state`` says of a generator of another kind.
        python: That of ``random``.
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
    return RandomStates(torch.default_generator.get_state(), _numpy(), random.getstate(), there)


def put_back(states: RandomStates) -> None:
    """Set all random states to what they were; that of an accelerator which this machine lacks is left out."""
    torch.default_generator.set_state(states.torch)
    np.random.set_state(_numpy_state(states.numpy))
    random.setstate(states.python)
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
    version, words, gauss = states.python
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


def _numpy() -> bytes | dict[str, Any]:
    generator = _bit_generator()
    if type(generator) is not _TWISTER or not _readable():
        found: dict[str, Any] = np.random.get_state(legacy=False)
        return found
    return ctypes.string_at(generator.ctypes.state_address, _RAW)


_KNOWN: list[bool] = []


def _readable() -> bool:
    """Return whether the state's memory is laid out as it is known to be; asked once."""
    if not _KNOWN:
        generator, told = _bit_generator(), np.random.get_state(legacy=False)
        raw = ctypes.string_at(generator.ctypes.state_address, _RAW)
        state = told["state"]
        _KNOWN.append(_words(raw) == (state["key"].tolist(), state["pos"]))
    return _KNOWN[0]


def _words(raw: bytes) -> tuple[list[int], int]:
    words = np.frombuffer(raw, dtype=np.uint32)
    return words[:WORDS].tolist(), int(words[WORDS])


def _numpy_state(found: bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    key, pos = _words(found)
    # The second half of a pair that the polar method draws lies elsewhere, where it cannot be read cheaply: it is drawn anew.
    state = {"key": np.array(key, dtype=np.uint32), "pos": pos}
    return {"bit_generator": "MT19937", "state": state, "has_gauss": 0, "gauss": 0.0}
