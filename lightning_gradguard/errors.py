"""Errors that the guard raises during a run, and how it names and survives those of its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class GuardError(RuntimeError):
    """A detector or remedy failed, or a saved state does not fit; the message names it."""


class TrainingDiverged(RuntimeError):
    """The budget of remedies is spent; the message tells what was tried."""


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or the host is out of memory; on a CPU torch has no class for that."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)


class PartError(GuardError):
    """A detector or a remedy has raised; the message names it."""


class named:
    """Turn whatever is raised inside a ``with`` block into a :class:`GuardError` that names ``what``.

    Used like a function, many times a step: a generator would cost several times as much.

    Args:
        what: What is at work in the block.
        isolate: Takes the error in place of the caller, who then goes on behind the block.
    """

    __slots__ = ("_isolate", "_what")

    def __init__(self, what: str, isolate: Callable[[GuardError], None] | None = None) -> None:
        self._what = what
        self._isolate = isolate

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Name the failing part."""
        if not isinstance(error, Exception):
            return False
        told = error if isinstance(error, GuardError) else PartError(f"{self._what} failed: {error!r}")
        if self._isolate is not None:
            self._isolate(told)
            return True
        if told is error:
            return False
        raise told from error


class Isolation:
    """Name a part (a detector or remedy) that fails, and leave it out from then on where that is wanted.

    Args:
        isolate: Told of a part that failed and is left out from then on; None lets the error pass.
        leave_out: Leaves it out.
    """

    def __init__(self, isolate: Callable[[GuardError], None] | None, leave_out: Callable[[Any], None]) -> None:
        self._isolate = isolate
        self._leave_out = leave_out
        # Made once a part; parts live as long as those who ask them.
        self._blocks: dict[int, named] = {}

    def block(self, part: Any, kind: str) -> named:
        """Return a ``with`` block that names ``part`` if it fails, and leaves it out where that is wanted."""
        found = self._blocks.get(id(part))
        if found is None:
            found = named(f"{kind} {part.name!r}", None if self._isolate is None else partial(self._drop, part))
            self._blocks[id(part)] = found
        return found

    def failed(self, part: Any, kind: str, error: Exception) -> None:
        """Name a part that failed outside a block, and do with it the same."""
        with self.block(part, kind):
            raise error

    def _drop(self, part: Any, error: GuardError) -> None:
        assert self._isolate is not None
        self._leave_out(part)
        self._isolate(error)


def expected(value: T, kind: type | tuple[type, ...]) -> T:
    """Return what a part gave back, if it is of the kind that its contract names; raise TypeError otherwise."""
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"it returned {value!r}, which is no {wanted}")
    return value


def overrides(part: object, base: type, *methods: str) -> bool:
    """Return whether a part has a method of its own where its base does nothing."""
    return any(getattr(type(part), method) is not getattr(base, method) for method in methods)
