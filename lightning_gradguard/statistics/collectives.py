"""The processes that train together, as far as statistics need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def _alone(value: Any) -> list[Any]:
    # A function of the module, since strategies that spawn processes pickle the callback.
    return [value]


@dataclass(frozen=True, slots=True)
class Collectives:
    """The processes that train together; by default there is one.

    Args:
        size: Number of processes.
        mean: Averages each number over the processes.
        gather: Returns one object of each process, in the order of their ranks.
        neighbours: Processes on this host, which share its memory; their ranks follow one another.
        rank: Which of them this is.
    """

    size: int = 1
    mean: Callable[[list[float]], list[float]] = list
    gather: Callable[[Any], list[Any]] = _alone
    neighbours: int = 1
    rank: int = 0


class Own(Generic[T]):
    """What only this process knows, as of its own batch: nobody may decide anything by it before all know it.

    Processes that come to different decisions make different collectives, and wait for each other for ever. So the value cannot be
    had but by telling it to the others (:meth:`told`), or where there are none (:meth:`known`).

    Args:
        value: What is known.

    Example:
        >>> from lightning_gradguard.statistics.collectives import Collectives, Own
        >>> seen = Own("the batch holds NaN")
        >>> seen.known(Collectives()), seen.told(Collectives())
        ('the batch holds NaN', ['the batch holds NaN'])
        >>> seen.known(Collectives(size=2)) is None
        True
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def __bool__(self) -> NoReturn:
        """Raise, since a choice by it is the very thing that is not allowed."""
        raise TypeError("what only this process knows is no ground for a decision")

    def and_then(self, change: Callable[[T], U]) -> Own[U]:
        """Return what follows from it, which is this process's own too."""
        return Own(change(self._value))

    def known(self, collectives: Collectives) -> T | None:
        """Return it where this process is the only one, else None: no others could come to another decision."""
        return self._value if collectives.size == 1 else None

    def told(self, collectives: Collectives) -> list[T]:
        """Tell all processes, and return what each of them knows; every process must call this at the same point."""
        found: list[T] = collectives.gather(self._value)
        return found
