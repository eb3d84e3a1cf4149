"""Reading an incident's JSON, which may be of any version, or anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, and nothing of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float:
    """Return a number that may have been written as a string; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def actions_of(record: Record) -> list[dict[str, Any]]:
    """Return the alarming steps that are kept."""
    return dicts(record.get("actions"))


def decision_of(action: Record) -> dict[str, Any]:
    """Return what was decided at an alarming step."""
    decision = action.get("decision")
    return decision if isinstance(decision, dict) else {}


def verdict_of(action: Record) -> dict[str, Any]:
    """Return what was found at an alarming step."""
    verdict = action.get("verdict")
    return verdict if isinstance(verdict, dict) else {}


def decided(action: Record) -> list[str]:
    """Return the names of the remedies that were called for."""
    return texts(decision_of(action).get("remedies"))


def applied(action: Record) -> list[dict[str, Any]]:
    """Return what remedies have done at an alarming step."""
    return [outcome for outcome in dicts(action.get("outcomes")) if outcome.get("applied")]


def texts(value: Any) -> list[str]:
    """Return the items of a list as text, and nothing of anything else."""
    return [str(item) for item in value] if isinstance(value, list) else []


def whole(value: Any) -> str:
    """Return a whole number as text, a question mark where it is none."""
    return f"{value:,}" if isinstance(value, int) else "?"


def integer(value: Any) -> int:
    """Return a whole number, zero where it is none."""
    return value if isinstance(value, int) else 0


def outcomes(record: Record) -> list[dict[str, Any]]:
    """Return what remedies have done in an incident, as far as it is kept."""
    return [outcome for action in actions_of(record) for outcome in applied(action)]
