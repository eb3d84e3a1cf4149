"""The events of a run's incidents, merged to one record an incident with its places on the axis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axis import Axis
from .clock import Heard
from .telling import dicts, fold, on_trial, outcomes, pending, tell, tidy

ENDED = "ended"
"""The event that a run writes last of all."""
LONGEST_EVENT = 2**20
"""Bytes of an event; the guard's longest, of twenty actions with all their evidence, has some ten thousand."""
DEEPEST_EVENT = 40
"""Levels of an event's JSON; the guard's have nine."""


_Key = tuple[int, int, int]
"""By what an incident is known: its optimizer, its number and its step."""


@dataclass(frozen=True, slots=True)
class Event:
    """One incident event as it was read."""

    tick: int
    wall_time: float
    optimizer: int
    payload: Mapping[str, Any]


def read_event(tick: int, wall_time: float, optimizer: int, tensor: Any) -> Event | None:
    """Read one event from a tensor that holds one text, or return None if it is not what it should be."""
    try:
        text = tensor if isinstance(tensor, (bytes, str)) else tensor.item()
        payload = json.loads(text, parse_int=_whole) if len(text) <= LONGEST_EVENT else None
        if not isinstance(payload, dict) or _deeper(payload, DEEPEST_EVENT):
            return None
    except Exception:
        return None
    return Event(tick, wall_time, optimizer, payload)


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 17 else float(digits)


def _deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most == 0 or any(_deeper(one, most - 1) for one in inner)


def incidents(events: Iterable[Event], axes: Mapping[int, Axis]) -> list[dict[str, Any]]:
    """Merge events to one record per incident, newest first.

    The last event of an incident holds all that is known of it; each place on the axis is that of the event in which
    its step was first heard of, before a rollback could have moved the run.

    Args:
        events: In the order of their ticks.
        axes: The axis of each optimizer.
    """
    # A run that is resumed from before an incident gives its number again, to another one.
    merged: dict[_Key, dict[str, Any]] = {}
    acted: dict[_Key, dict[int, dict[str, Any]]] = {}
    heard: dict[tuple[_Key, int], float] = {}
    for event in events:
        record = event.payload.get("incident")
        if not isinstance(record, dict):
            continue
        optimizer = _integer(record.get("optimizer"), event.optimizer)
        own = _integer(record.get("number"), 0)
        if own < 1:
            continue
        step = _integer(record.get("step"), _integer(event.payload.get("step"), 0))
        key = optimizer, own, step
        known, axis = merged.get(key), axes.get(optimizer)

        def place(at: Any, axis: Axis | None = axis, key: _Key = key, now: float = event.wall_time) -> float:
            found = _integer(at, 0)
            return heard.setdefault((key, found), axis.place(found, now) if axis else float(found))

        # An incident keeps its first and its last actions; what lay between was told by the events before.
        mine = acted.setdefault(key, {})
        mine.update({one["step"]: one for one in dicts(record.get("actions")) if isinstance(one.get("step"), int)})
        if mine and len(mine) > len(dicts(record.get("actions"))):
            record = {**record, "actions": [mine[step] for step in sorted(mine)]}
        told = tell(record)
        for one, shown in zip(dicts(record.get("trials")), told["trials"], strict=True):
            shown |= {
                "from": place(one.get("opened")),
                "to": place(one.get("closed")),
                "outcome": str(one.get("outcome")),
            }
        if (open_trial := pending(record)) is not None:
            told["pending"] = {"treatment": on_trial(record), "from": place(open_trial.get("step"))}
        merged[key] = {
            **record,
            "optimizer": optimizer,
            "number": own,
            "step": step,
            "place": place(step),
            "time": known["time"] if known else event.wall_time,
            "messages": (known["messages"] if known else []) + _message(event),
            "told": told,
            "rollbacks": [_rollback(*went, place(went[0])) for went in _went_back(record)],
            "ended": place(record["closed"]) if isinstance(record.get("closed"), int) else None,
        }
    return sorted(merged.values(), key=lambda record: (record["place"], record["number"]), reverse=True)


def _went_back(record: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Return the steps at which weights went back, each with the step they went back to, where that is known."""
    return [
        (action["step"], outcome.get("back_to"))
        for action in dicts(record.get("actions"))
        for outcome in dicts(action.get("outcomes"))
        if outcome.get("remedy") == "rollback" and outcome.get("applied") and isinstance(action.get("step"), int)
    ]


def _rollback(step: int, back: Any, place: float) -> dict[str, Any]:
    to = back if isinstance(back, int) else None
    return {"step": step, "place": place, "back_to": to, "back_place": None if to is None else place - step + to}


def notices(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return what was said outside any incident, newest first.

    What differs only in its numbers is said once, with how often.
    """
    said = [
        (_integer(event.payload.get("step"), 0), tidy(str(event.payload["message"])))
        for event in events
        if not isinstance(event.payload.get("incident"), dict) and event.payload.get("message")
    ]
    return [
        {"step": last, "first": first, "times": times, "message": message}
        for first, last, times, message in fold(said)[::-1]
    ]


def last_heard(events: Sequence[Event], axes: Mapping[int, Axis]) -> Heard:
    """Return when a run was last heard of, and whether it said that it ended and nothing after it."""
    times = [float(one.wall_times[-1]) for one in axes.values() if len(one.wall_times)]
    times += [event.wall_time for event in events]
    last = max(times, default=math.nan)
    ends = [event.wall_time for event in events if event.payload.get("event") == ENDED]
    # What is written at the end is written in one go, and its order is the file's.
    return Heard(last, bool(ends) and last - max(ends) < 1.0)


def layers_told_of(events: Iterable[Event]) -> set[str]:
    """Return the layers that any incident blames or has repaired."""
    told: set[str] = set()
    for event in events:
        record = event.payload.get("incident")
        if isinstance(record, dict):
            told |= {str(one.get("layer")) for one in dicts(record.get("blame"))}
            told |= {str(name) for one in outcomes(record) for name in one.get("layers") or ()}
    return told


def _integer(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _message(event: Event) -> list[str]:
    return [tidy(str(event.payload["message"]))] if event.payload.get("message") else []
