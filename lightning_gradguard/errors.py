"""What the guard raises in mid-run, and the one error of others that it can do without."""

from __future__ import annotations

from collections.abc import Callable

import torch


class GuardError(RuntimeError):
    """A detector or remedy failed, or a saved state does not fit; the message names it."""


class TrainingDiverged(RuntimeError):
    """The budget of remedies is spent; the message tells what was tried."""


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device or the host has no memory left; on a CPU torch has no class for that."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)


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
        told = error if isinstance(error, GuardError) else GuardError(f"{self._what} failed: {error!r}")
        if self._isolate is not None:
            self._isolate(told)
            return True
        if told is error:
            return False
        raise told from error
