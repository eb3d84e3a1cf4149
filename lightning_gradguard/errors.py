"""What the guard raises in mid-run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class GuardError(RuntimeError):
    """A detector or remedy failed; the message names it."""


class TrainingDiverged(RuntimeError):
    """The budget of remedies is spent; the message tells what was tried."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turn whatever is raised inside into a :class:`GuardError` that names ``what``."""
    try:
        yield
    except GuardError:
        raise
    except Exception as error:
        raise GuardError(f"{what} failed: {error!r}") from error
