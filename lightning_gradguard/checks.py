"""Argument checks whose messages name the parameter, the constraint and the value received."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def number(
    name: str, value: float, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """Return ``value`` as a float if it is a number within the bounds; raise ValueError otherwise.

    A NaN is refused whatever the bounds; inf is a number only where no upper bound is given.
    """
    bounds = [f"{sign} {bound:g}" for sign, bound in ((">", above), (">=", least), ("<=", most)) if bound is not None]
    constraint = " and ".join(bounds) or "a number"
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if good:
        good = (
            (above is None or value > above) and (least is None or value >= least) and (most is None or value <= most)
        )
    if not good:
        raise ValueError(f"{name} must be {constraint}, got {value!r}")
    return float(value)


def whole(name: str, value: int, *, least: int = 0) -> int:
    """Return ``value`` if it is an int of at least ``least``; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def choice(name: str, value: str, options: Collection[str]) -> str:
    """Return ``value`` if it is one of ``options``; raise ValueError otherwise."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def instance(name: str, value: T, kind: type[Any]) -> T:
    """Return ``value`` if it is a ``kind``; raise ValueError otherwise."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be an instance of {kind.__name__}, got {value!r}")
    return value


def instances(name: str, values: Sequence[T], kind: type[Any]) -> list[T]:
    """Return ``values`` as a list if each is a ``kind`` and no two share a name; raise ValueError otherwise."""
    names: set[object] = set()
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"{name} must hold instances of {kind.__name__}, got {value!r}")
        own = getattr(value, "name", None)
        if own in names:
            raise ValueError(f"{name} must not hold two of the same name, got {own!r} twice")
        names.add(own)
    return list(values)
