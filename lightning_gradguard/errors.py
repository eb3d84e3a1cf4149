"""What the guard raises in mid-run."""

from __future__ import annotations


class GuardError(RuntimeError):
    """A detector or remedy failed; the message names it."""


class TrainingDiverged(RuntimeError):
    """The budget of remedies is spent; the message tells what was tried."""


class named:
    """Turn whatever is raised inside a ``with`` block into a :class:`GuardError` that names the part: ``named("detector", "spike")``.

    Used like a function, many times a step: a generator would cost several times as much.
    """

    __slots__ = ("_kind", "_name")

    def __init__(self, kind: str, name: str) -> None:
        self._kind, self._name = kind, name

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Name the failing part."""
        if isinstance(error, Exception) and not isinstance(error, GuardError):
            raise GuardError(f"{self._kind} {self._name!r} failed: {error!r}") from error
