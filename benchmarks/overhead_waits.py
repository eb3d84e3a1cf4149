"""Count how often a step makes the host wait for a GPU; it need not have one, as what waits there is called here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median_low
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradguard import deferred_step

SCALARS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"})
COPIES = frozenset({Tensor.cpu, Tensor.tolist})


class Scalars(TorchDispatchMode):
    """Count, by dispatch, the numbers read from a tensor (``item``, ``if tensor``), and answers sized by one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().partition(".")[0] in SCALARS
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Count the copies to the host that a tensor which is there already does not dispatch."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in COPIES
        if func is torch.tensor and isinstance(args[0], (list, tuple)):
            self.count += sum(isinstance(a, Tensor) for a in args[0])  # it reads them one by one
        return func(*args, **(kwargs or {}))


@contextmanager
def as_a_device() -> Iterator[None]:
    """Let the CPU count as a device that works on by itself, so that the guard treats it as it treats a GPU."""
    with mock.patch.object(deferred_step, "DEVICES", frozenset({"cpu"})):
        yield


def waits(call: Callable[[], object], *, calls: int = 5) -> int:
    """Return how often the host would wait in one call, the median of a few; the first one is for getting under way."""
    counts = []
    with as_a_device():
        call()
        for _ in range(calls):
            with Scalars() as scalars, Copies() as copies:
                call()
            counts.append(scalars.count + copies.count)
    return median_low(counts)
