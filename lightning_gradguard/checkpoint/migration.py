"""The version of a saved state, and how one of an earlier version becomes one of this."""

from __future__ import annotations

import warnings
from typing import Any

VERSION = 11
"""Of the state. It moves with every change of its keys; a state of an earlier one is migrated step by step."""


def empty() -> dict[str, Any]:
    """Return a state in which nothing is known. Its keys are those of older versions, whatever they name now."""
    return {"version": VERSION, "lanes": {}, "incidents": [], "armed": "", "awaiting": []}


def migrate(state: Any) -> Any:
    """Return a state of an earlier version as one of this version; another state as it is."""
    while isinstance(state, dict) and type(version := state.get("version")) is int and version in _MIGRATIONS:
        state = _MIGRATIONS[version](state)
    return state


def _from_1(state: dict[str, Any]) -> dict[str, Any]:
    """Keep the incidents, and drop what rules had learned that are gone."""
    warnings.warn(
        "GradGuard: the saved state is of an older version: its incidents are kept, and what is usual in this run is "
        "learned anew",
        RuntimeWarning,
        stacklevel=4,
    )
    incidents = state.get("incidents")
    kept = list(map(over, incidents)) if isinstance(incidents, list) else incidents
    return {**state, **empty(), "version": 2, "incidents": kept}


def _next(state: dict[str, Any]) -> dict[str, Any]:
    """Change nothing but the number: what is new since then is completed, and what has another name is learned anew."""
    return {**state, "version": state["version"] + 1}


_MIGRATIONS = {1: _from_1, 2: _next, 3: _next, 4: _next, 5: _next, 6: _next, 7: _next, 8: _next, 9: _next, 10: _next}


def over(incident: Any) -> Any:
    """Return an incident without fields that decisions no longer have; closed, since nobody is left to close it."""
    try:
        gone = ("factor", "permanent")
        actions = [
            {**action, "decision": {key: value for key, value in action["decision"].items() if key not in gone}}
            for action in incident["actions"]
        ]
        last = [incident["step"], *(action["step"] for action in actions)][-1]
        return {**incident, "actions": actions, "closed": last if incident["closed"] is None else incident["closed"]}
    except (AttributeError, KeyError, TypeError):
        return incident  # What is wrong with it, the check will tell.
