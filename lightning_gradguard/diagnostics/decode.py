"""Read records back from JSON, trusting nothing: every field is checked against the type it is declared with."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable
from typing import Any, TypeVar, cast

import numpy as np

from lightning_gradguard.records import FloatArray

Record = TypeVar("Record")


LARGEST_EXACT = 2**53
"""No step or count is as large: beyond, a double does not tell it from the next."""


class Malformed(ValueError):
    """Data from disk that is not what it should be."""


def decode(kind: type[Record], data: Any) -> Record:
    """Return the record of type ``kind`` that :func:`~lightning_gradguard.records.to_json` wrote.

    Unknown fields are ignored and missing ones take their default, so that neighbouring versions can read each other.

    Raises:
        Malformed: If a field is missing or has another type; the message names it.
    """
    return cast(Record, _decode(kind, data, kind.__name__))


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cast(Any, kind))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(cast("type[Any]", kind), data, where)
    if kind == FloatArray:
        return _floats(data, where)
    if kind is float:
        return _float(data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in arguments if a is not type(None))
        return None if data is None else _decode(inner, data, where)
    if origin is tuple:
        return _tuple(arguments, data, where)
    # A word that this version does not know (a new form of explosion) is still worth showing.
    expected = str if origin is typing.Literal else kind
    if not isinstance(data, expected) or (expected is int and isinstance(data, bool)):
        raise Malformed(f"{where} should be {expected.__name__}, not {type(data).__name__}")
    if isinstance(data, int) and abs(data) > LARGEST_EXACT:
        raise Malformed(f"{where} is too large a number")
    return data


def _record(kind: type[Any], data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise Malformed(f"{where} should be an object, not {type(data).__name__}")
    values, hints = {}, _hints(cast(Hashable, kind))
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _decode(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Malformed(f"{where}.{field.name} is missing")
    return kind(**values)


def _tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    data = _list(data, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(arguments) != len(data):
        raise Malformed(f"{where} should hold {len(arguments)} items, not {len(data)}")
    return tuple(_decode(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, data, strict=True)))


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise Malformed(f"{where} should be a list, not {type(data).__name__}")
    return data


def _float(data: Any, where: str) -> float:
    if (isinstance(data, (int, float)) and not isinstance(data, bool)) or data in ("inf", "-inf", "nan"):
        try:
            return float(data)
        except OverflowError:
            raise Malformed(f"{where} is too large a number") from None
    raise Malformed(f"{where} should be a number, not {type(data).__name__}")


def _floats(data: Any, where: str) -> FloatArray:
    return np.array([_float(item, where) for item in _list(data, where)], dtype=np.float64)
