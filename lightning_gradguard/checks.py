"""Argument checks whose messages name the parameter, the constraint and the value received."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OF_A_VALUE = 100
"""Characters of a value that are shown: an optimizer or a list of tensors would fill the screen."""


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


def whole_or_none(name: str, value: int | None, *, least: int = 0) -> int | None:
    """Return ``value`` if it is None or a whole number of at least ``least``."""
    return None if value is None else whole(name, value, least=least)


def choice(name: str, value: str, options: Collection[str]) -> str:
    """Return ``value`` if it is one of ``options``; raise ValueError otherwise."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def instance(name: str, value: T, kind: type[Any]) -> T:
    """Return ``value`` if it is a ``kind``; raise ValueError otherwise."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be an instance of {kind.__name__}, got {_shown(value)}")
    return value


def path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return ``value`` as a path if it is one; raise ValueError otherwise."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name} must be a path, got {_shown(value)}")
    return Path(value)


def instances(name: str, values: Sequence[T], kind: type[Any]) -> list[T]:
    """Return ``values`` as a list if each is a ``kind`` with a name of its own; raise ValueError otherwise."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of instances of {kind.__name__}, got {_shown(values)}")
    names: set[object] = set()
    values = list(values)
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"{name} must hold instances of {kind.__name__}, got {_shown(value)}")
        # Sinks have none.
        own = getattr(value, "name", "") if hasattr(kind, "name") or "name" in kind.__annotations__ else None
        if own == "" or not isinstance(own, str | None):
            raise ValueError(
                f"{name} must each have a name, a string, as a class attribute; {type(value).__name__} has {own!r}"
            )
        if own is not None and own in names:
            raise ValueError(f"{name} must not hold two of the same name, got {own!r} twice")
        names.add(own)
    return values


def flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False; raise ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def function(name: str, value: T) -> T:
    """Return ``value`` if it can be called; raise ValueError otherwise."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {value!r}")
    return value


def matching(
    name: str,
    patterns: Collection[str],
    known: Mapping[str, Collection[str]],
    *,
    hint: Callable[[object], str] = lambda pattern: "",
) -> set[str]:
    """Return the known names that match a shell-style pattern; raise ValueError if one matches none.

    Args:
        name: The argument.
        patterns: What was given for it.
        known: The names, by the kind of what bears them.
        hint: Returns what else a pattern that matches nothing may be, to be said behind it.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ValueError(f"{name} must be a list of patterns, got {patterns!r}")
    found = set[str]()
    for pattern in patterns:
        every = [one for names in known.values() for one in names]
        matched = {one for one in every if isinstance(pattern, str) and fnmatchcase(one, pattern)}
        if not matched:
            told = " or of ".join(f"{kind} ({', '.join(names)})" for kind, names in known.items())
            raise ValueError(f"{name} must match names of {told}, got {pattern!r}{hint(pattern)}")
        found |= matched
    return found


def described(part: object) -> str:
    """Return a part as it would be constructed, without arguments that are their defaults: ``Spike(factor=20.0)``."""
    shown = []
    for name, parameter in list(inspect.signature(type(part).__init__).parameters.items())[1:]:
        value = getattr(part, name, parameter.default)
        if value is not parameter.default and value != parameter.default:
            shown.append(f"{name}={value!r}")
    return f"{type(part).__name__}({', '.join(shown)})"


def _shown(value: object) -> str:
    """Return a value on one line, the beginning of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= OF_A_VALUE else f"{text[:OF_A_VALUE]}..."
