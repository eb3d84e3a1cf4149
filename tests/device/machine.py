"""What is known of the simulated machine: what it was told, what is on its way, and for what the host has waited."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def place_of(device: Any) -> torch.device:
    """Return a device with its number."""
    found = torch.device(device)
    return torch.device(found.type, 0) if found.type not in ("cpu", "meta") and found.index is None else found


class Waited(RuntimeError):
    """The host waited for the device where it was not to."""


class Device:
    """What is known of the simulated machine.

    Attributes:
        waits: Why the host has waited so far, oldest first.
        strict: Whether a wait raises :class:`Waited`.
        pinned_bytes: Bytes of pinned memory that were asked for.
        memory: Bytes that one new tensor on a device may have at most.
        seeded: Devices whose state of random numbers was read.
        beside: The stream that work is given to in place of the one of a device, or None.
        work: How much the latter was given.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.strict = False
        self.pinned_bytes = 0
        self.memory = 2**40
        self.seeded: set[int] = set()
        self.made = self.work = 0
        self.beside: Stream | None = None
        self._sent = 0
        self._coming: list[tuple[int, Tensor, Tensor, int]] = []
        self._pinned: set[int] = set()

    @property
    def sent(self) -> int:
        """How many copies were sent to the host."""
        return self._sent

    @property
    def under_way(self) -> int:
        """How many of them have not arrived."""
        return len(self._coming)

    def wait(self, why: str, *, everywhere: bool = False) -> None:
        """Wait for all that the device was told, beside its own stream only where it is said so, and count it."""
        self.arrive(self._sent, None if everywhere else 0)
        self.waits.append(why)
        if self.strict:
            raise Waited(why)

    def arrive(self, until: int, stream: int | None = 0) -> None:
        """Let the copies of one stream (None of all) that were sent first reach the host."""
        coming = []
        for number, target, value, there in self._coming:
            if number <= until and stream in (None, there):
                target.copy_(value)
            else:
                coming.append((number, target, value, there))
        self._coming = coming

    def catch_up(self, stream: Stream) -> None:
        """Let a stream read what it copies: from here on others may write to it, and wait with the device's own."""
        self._coming = [
            (number, target, value.clone(), 0) if there == stream.cuda_stream else (number, target, value, there)
            for number, target, value, there in self._coming
        ]

    def send(self, target: Tensor, value: Tensor) -> None:
        """Begin a copy to the host, where there is nothing to be read until it arrives.

        On a stream beside it is read late, so by what nobody waits for it is torn; and it is nothing where that did not
        wait for the work before it.
        """
        self._sent += 1
        side = self.beside
        read = value.detach().to(target.dtype) if side is not None else value.detach().to(target.dtype, copy=True)
        if side is not None and side.behind != self.work:
            read = torch.full_like(read, torch.nan if read.is_floating_point() else 0x5A)
        self._coming.append((self._sent, target, read, 0 if side is None else side.cuda_stream))
        target.fill_(torch.nan if target.is_floating_point() or target.is_complex() else 0x5A)

    def pin(self, tensor: Tensor) -> Tensor:
        """Count a tensor of the host as pinned."""
        self._pinned.add(tensor.untyped_storage().data_ptr())
        self.pinned_bytes += tensor.nbytes
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Tell whether the device can write to a tensor of the host by itself."""
        return tensor.is_cpu and tensor.untyped_storage().data_ptr() in self._pinned


DEVICE = Device()


class Event:
    """A mark in what the device has been told."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at, self.stream = -1, 0
        DEVICE.made += 1

    def record(self, stream: Stream | None = None) -> None:
        self.at, self.stream = DEVICE.sent, 0 if stream is None else stream.cuda_stream

    def synchronize(self) -> None:
        DEVICE.arrive(self.at, self.stream)

    def query(self) -> bool:
        return True

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'Event' object")


class Stream:
    """A queue of work; number 0 is the one that a device has by itself.

    Attributes:
        behind: How much work of that one it waits for.
    """

    numbers = itertools.count(1)

    def __init__(self, device: Any = None, *, number: int | None = None) -> None:
        self.device = None if device is None else place_of(device)
        self.cuda_stream = next(self.numbers) if number is None else number
        self.behind = -1

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_stream(self, other: Stream) -> None:
        if self.cuda_stream:
            self.behind = DEVICE.work
        else:
            DEVICE.catch_up(other)


def current(device: Any = None) -> Stream:
    return DEVICE.beside or Stream(device, number=0)


@contextlib.contextmanager
def on(stream: Stream) -> Iterator[None]:
    before, DEVICE.beside = DEVICE.beside, stream
    try:
        yield
    finally:
        DEVICE.beside = before
