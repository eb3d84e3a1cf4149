"""A device that is not there: tensors that say they are on ``cuda:0`` (or ``cuda:1``, ``mps:0``), and are as strict about it.

What they hold lies in the memory of the host. Operations between two devices fail as they do on CUDA, a non-blocking copy to pinned
memory arrives once an event behind it is waited for (until then the host reads NaN), all that makes the host wait is counted, and
``mps`` knows no float64. Forward and backward pass are made by a twin on the host that shares the memory.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

READS = frozenset(
    {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2"}
)
"""What needs an answer from the device before the host can go on."""
WIDE = frozenset({torch.float64, torch.complex128})
NO_WIDE = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."


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
        """Let a stream read what it copies: from here on others may write to it, and wait for it with the device's own."""
        self._coming = [
            (number, target, value.clone(), 0) if there == stream.cuda_stream else (number, target, value, there)
            for number, target, value, there in self._coming
        ]

    def send(self, target: Tensor, value: Tensor) -> None:
        """Begin a copy to the host, where there is nothing to be read until it arrives.

        On a stream beside it is read late, so by what nobody waits for it is torn; and it is nothing where that did not wait for the work
        before it.
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
        return not isinstance(tensor, Far) and tensor.untyped_storage().data_ptr() in self._pinned


DEVICE = Device()


class Far(Tensor):
    """A tensor on a device, whose values ``near`` holds on the host."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor, device: torch.device | str) -> Far:
        made: Far = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=torch.device(device),
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _read(self, why: str) -> Tensor:
        DEVICE.wait(why)
        return self.near

    def tolist(self) -> Any:
        return self._read("tolist").tolist()

    def item(self) -> Any:
        return self._read("item").item()

    def __float__(self) -> float:
        return float(self._read("float"))

    def __int__(self) -> int:
        return int(self._read("int"))

    def __bool__(self) -> bool:
        return bool(self._read("bool"))

    def __index__(self) -> int:
        return int(self._read("index"))

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        return torch.ops.aten.copy_.default(self, source, non_blocking)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def contiguous(self, *_: Any, **__: Any) -> Tensor:
        return self if self.near.is_contiguous() else Far(self.near.contiguous(), self.device)

    def nonzero(self, *_: Any, **__: Any) -> Tensor:
        return Far(self._read("nonzero").nonzero(), self.device)

    def __invert__(self) -> Tensor:
        return torch.bitwise_not(self)

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, list) or (isinstance(index, Tensor) and not isinstance(index, Far)):
            DEVICE.wait("an index of the host")
        return Far(self.near[near(index)], self.device)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.near[near(index)] = near(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Far:
        return Far(self.near.clone(), self.device)

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _do(func, args, kwargs or {})


def near(value: Any) -> Any:
    """Return what a tensor holds, on the host; anything else as it is."""
    return value.near if isinstance(value, Far) else value


def far(value: Tensor, device: str = "cuda:0") -> Far:
    """Return a tensor on the device that shares the memory of ``value``."""
    return Far(value, device)


def _place(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device(found.type, 0) if found.type not in ("cpu", "meta") and found.index is None else found


def _do(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the host what the device was told, as strictly as the device."""
    name = func.name().removeprefix("aten::").partition(".")[0]
    DEVICE.work += DEVICE.beside is None
    if name == "is_same_size":
        return args[0].shape == args[1].shape
    if name == "is_pinned":
        return DEVICE.is_pinned(args[0])
    if name == "_pin_memory":
        return DEVICE.pin(args[0].clone())
    if name == "copy_":
        return _copy(args[0], args[1], bool((*args[2:], kwargs.get("non_blocking", False))[0]))
    if name == "_foreach_copy_":
        for target, source in zip(args[0], args[1], strict=True):
            _copy(target, source, bool((*args[2:], kwargs.get("non_blocking", False))[0]))
        return None
    if name == "_to_copy":
        return _to(args[0], **kwargs)
    if name in READS:
        DEVICE.wait(name)
    if name == "histc" and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("_histc_cuda does not have a deterministic implementation")
    place = _common(name, args, kwargs)
    if place is not None and place.type == "mps" and kwargs.get("dtype") in WIDE:
        raise TypeError(NO_WIDE)
    wanted = kwargs.get("device")
    kwargs = {**kwargs, "device": torch.device("cpu")} if wanted is not None else dict(kwargs)
    pinned = kwargs.pop("pin_memory", None)
    found = func(*tree_map(near, args), **tree_map(near, kwargs))
    if pinned:
        DEVICE.pin(found)
    if place is None or (wanted is not None and _place(wanted).type == "cpu"):
        return found
    # What is changed in place, or written to, must stay that very tensor.
    own = {id(one.near): one for one in tree_leaves((args, kwargs)) if isinstance(one, Far)}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Far):
            return value
        if id(value) not in own and value.nbytes > DEVICE.memory:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {value.nbytes} bytes.")
        known = own.get(id(value))
        return Far(value, place) if known is None else known

    return tree_map(back, found)


def _common(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """Return where an operation takes place, None for the host; raise where it would have to in two places."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    places = {one.device for one in tensors if isinstance(one, Far)}
    others = [one for one in tensors if not isinstance(one, Far)]
    if not places:
        wanted = kwargs.get("device")
        place = None if wanted is None else _place(wanted)
        return None if place is None or place.type == "cpu" else place
    if len(places) > 1:
        found = ", ".join(sorted(map(str, places)))
        raise RuntimeError(f"Expected all tensors to be on the same device, found {found} [{name}]")
    # A number on the host may be mixed with anything, but for a kernel that takes a pointer to it.
    if any(one.dim() for one in others) or (others and "_fused_" in name):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found {min(map(str, places))}, cpu [{name}]"
        )
    return places.pop()


def _copy(target: Tensor, source: Tensor, free: bool) -> Tensor:
    """Copy within a device or between one and the host; ``free`` lets the host go on meanwhile, where memory is pinned."""
    if isinstance(target, Far) and isinstance(source, Far):
        target.near.copy_(source.near)
    elif isinstance(target, Far):
        if not (free and DEVICE.is_pinned(source)):
            DEVICE.wait("a copy to the device")
        target.near.copy_(source)
    elif isinstance(source, Far):
        if free and DEVICE.is_pinned(target):
            DEVICE.send(target, source.near)
        else:
            DEVICE.wait("a copy to the host")
            target.copy_(source.near)
    else:
        target.copy_(source)
    return target


def _to(source: Tensor, device: Any = None, non_blocking: bool = False, **more: Any) -> Tensor:
    place = _place(source.device if device is None else device)
    more.pop("pin_memory", None)
    if place.type == "mps" and (more.get("dtype") or source.dtype) in WIDE:
        raise TypeError(NO_WIDE)
    made = torch.ops.aten._to_copy(near(source), **{key: value for key, value in more.items() if value is not None})
    if isinstance(source, Far) and place.type == "cpu":
        if non_blocking:  # torch pins what it makes for it
            DEVICE.pin(made)
            DEVICE.send(made, near(source))
        else:
            DEVICE.wait("to the host")
    elif not isinstance(source, Far) and not (non_blocking and DEVICE.is_pinned(source)):
        DEVICE.wait("to the device")
    return made if place.type == "cpu" else Far(made, place)


class _Makes(TorchDispatchMode):
    """Lead to the device what is made there, and what is asked of pinned memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = kwargs.get("device")
        away = place is not None and torch.device(place).type not in ("cpu", "meta")
        name = func.name().removeprefix("aten::").partition(".")[0]
        if away or kwargs.get("pin_memory") or name in ("is_pinned", "_pin_memory"):
            return _do(func, args, kwargs)
        return func(*args, **kwargs)


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
        self.device = None if device is None else _place(device)
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


def _current(device: Any = None) -> Stream:
    return DEVICE.beside or Stream(device, number=0)


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    before, DEVICE.beside = DEVICE.beside, stream
    try:
        yield
    finally:
        DEVICE.beside = before


@contextlib.contextmanager
def simulated() -> Iterator[Device]:
    """Let there be two CUDA devices and one of Apple's, inside the block."""
    DEVICE.__init__()  # type: ignore[misc]
    state = torch.zeros(8, dtype=torch.uint8)

    def seed(device: Any = 0) -> Tensor:
        DEVICE.seeded.add(torch.device("cuda", device).index if isinstance(device, int) else _place(device).index)
        return state

    stands: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "Event": Event,
        "Stream": Stream,
        "stream": _on,
        "current_stream": _current,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device=None: DEVICE.wait("synchronize", everywhere=True),
        "get_rng_state": seed,
        "set_rng_state": lambda state, device=0: None,
    }
    as_tensor = torch.as_tensor

    def made(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        here = as_tensor(data, dtype=dtype)
        return here if isinstance(data, Tensor) or device is None or _place(device).type == "cpu" else far(here, device)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "as_tensor", made))
        for name, stand in stands.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand))
        stack.enter_context(_Makes())
        yield DEVICE


def moved(module: nn.Module, device: str | Callable[[str], str] = "cuda:0") -> tuple[nn.Module, nn.Module]:
    """Return the module on a device (its parameters each on one of its own, where ``device`` tells which), and its twin on the host."""
    twin, there = copy.deepcopy(module), copy.deepcopy(module)
    homes = dict((*twin.named_parameters(), *twin.named_buffers()))
    for prefix, layer in there.named_modules():
        for held in (layer._parameters, layer._buffers):
            for key, value in held.items():
                if value is None:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                place = device(name) if callable(device) else device
                home = homes[name].detach() if held is layer._parameters else homes[name]
                value_there: Tensor = home if place == "cpu" else Far(home, place)
                held[key] = nn.Parameter(value_there, value.requires_grad) if held is layer._parameters else value_there
    return there, twin
