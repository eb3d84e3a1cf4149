"""The processes that train together, as far as statistics need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
    """

    size: int = 1
    mean: Callable[[list[float]], list[float]] = list
    gather: Callable[[Any], list[Any]] = _alone
