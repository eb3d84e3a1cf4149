"""The incidents of a run, and the sentence that says how it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .series import Axis
from .telling import dicts, remains, state, tell, watched

Level = Literal["good", "warning", "bad"]
Words = list[dict[str, str]]
"""A sentence in pieces, ``{"text": ...}`` or ``{"layer": ...}``: the page parses no markup."""


@dataclass(frozen=True, slots=True)
class Event:
    """One incident event as it was read."""

    tick: int
    wall_time: float
    optimizer: int
    payload: Mapping[str, Any]


def parse_event(tick: int, wall_time: float, optimizer: int, text: bytes | str) -> Event | None:
    """Read one event, or return None if it is not the JSON object it should be."""
    try:
        payload = json.loads(text)
    except (ValueError, TypeError):
        return None
    return Event(tick, wall_time, optimizer, payload) if isinstance(payload, dict) else None


def incidents(events: Iterable[Event], axes: Mapping[int, Axis]) -> list[dict[str, Any]]:
    """Merge events to one record per incident, newest first.

    The last event of an incident holds all that is known of it; its place on the axis is that of the first, written
    before a rollback could have moved the run.

    Args:
        events: In the order of their ticks.
        axes: The axis of each optimizer.
    """
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        record = event.payload.get("incident")
        if not isinstance(record, dict):
            continue
        optimizer = _integer(record.get("optimizer"), event.optimizer)
        number = _integer(record.get("number"), 0)
        if number < 1:
            continue
        step = _integer(record.get("step"), _integer(event.payload.get("step"), 0))
        known = merged.get((optimizer, number))
        axis = axes.get(optimizer)
        place = known["place"] if known else axis.place(step, event.wall_time) if axis else float(step)
        merged[optimizer, number] = {
            **record,
            "optimizer": optimizer,
            "number": number,
            "step": step,
            "place": place,
            "time": known["time"] if known else event.wall_time,
            "messages": (known["messages"] if known else []) + _message(event),
            "told": tell(record),
        }
    return sorted(merged.values(), key=lambda record: (record["place"], record["number"]), reverse=True)


def notices(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return what was said outside any incident, newest first."""
    said = [
        {"step": _integer(event.payload.get("step"), 0), "message": str(event.payload["message"])}
        for event in events
        if not isinstance(event.payload.get("incident"), dict) and event.payload.get("message")
    ]
    return said[::-1]


def verdict(
    records: list[dict[str, Any]],
    end: tuple[float, int] | None,
    restless_since: int | None = None,
    counts: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Say in one sentence whether the run is healthy, when it broke, which layer was first, and what was done.

    Args:
        records: The incidents, newest first.
        end: Place and step that the run has reached, or None where no window has been.
        restless_since: First step of a stretch outside the band that has not ended, told of by an incident or not.
        counts: Steps ``clipped``, ``skipped`` and left to a GradScaler (``overflows``), as the windows count them.

    Returns:
        ``level`` (green, amber or red), ``headline`` (one or two words) and ``words``.

    >>> verdict([], (12400.0, 12399))["words"]
    [{'text': 'No incident in 12,400 steps.'}]
    """
    counts = counts or {}
    steps = f"{end[1] + 1:,} steps" if end else "this run"
    restless = f"the norm has been non-finite or over its limit since step {restless_since or 0:,}"
    if not records:
        if restless_since is None:
            routine = counts.get("overflows", 0)
            aside = f" The GradScaler skipped {_count(routine, 'step')} by itself, as it should." if routine else ""
            return _verdict("good", "Healthy", [{"text": f"No incident in {steps}.{aside}"}])
        return _verdict("bad", "Out of its band", [{"text": f"No incident was recorded in {steps}, but {restless}."}])

    newest = records[0]
    words: Words = [
        {"text": f"{_count(len(records), 'incident')} in {steps}; the last: {newest.get('form', 'unknown')}"},
        {"text": f" at step {newest['step']:,}"},
    ]
    culprit = _culprit(newest)
    if culprit:
        words += [{"text": ", first in "}, {"layer": culprit}]
    # The newest window may not have been written yet, and an old log does not count at all.
    held, clipped = max(counts.get("skipped", 0), _held(records)), counts.get("clipped", 0)
    done = [f"{_count(held, 'step')} skipped"] if held else []
    done += [f"{_count(clipped, 'step')} clipped"] if clipped else []
    words.append({"text": f"; {', '.join(done) or _done(newest)}"})

    if state(newest) == "failed" or any(_exhausted(record) for record in records):
        told = "; the remedies did not help." if _outcomes(newest) else "; the run went on."
        if dicts(newest.get("trials")) and state(newest) == "failed":
            left = remains(newest)
            told = "; nothing that was tried helped, and it was taken back" + (f"; left: {left}." if left else ".")
        return _verdict("bad", "Not healed", [*words, {"text": told}])
    if newest.get("closed") is None:
        return _verdict("bad", "In trouble", [*words, {"text": "; not over yet."}])
    if restless_since is not None:
        return _verdict("bad", "Out of its band", [*words, {"text": f"; {restless}."}])
    calm = end[0] - 1 - newest["place"] if end else 0.0
    states = {state(record) for record in records}
    if state(newest) == "anew":
        words.append({"text": "; data, loss or task have changed for good, and what is healthy was learned anew"})
    if all(map(watched, records)):
        words.append({"text": "; nothing was changed, only watched"})
    how = "healthy" if "helped" in states else "calm"
    words.append({"text": f"; {how} for {calm:,.0f} steps since." if calm >= 1 else f"; {how} since."})
    if states == {"calm"}:
        return _verdict("good", "Calm again", words)
    headline = "Learned anew" if state(newest) == "anew" else "Recovered" if "helped" in states else "Calm again"
    return _verdict("warning", headline, words)


def _verdict(level: Level, headline: str, words: Words) -> dict[str, Any]:
    return {"level": level, "headline": headline, "words": words}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _integer(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _message(event: Event) -> list[str]:
    return [str(event.payload["message"])] if event.payload.get("message") else []


def _outcomes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [o for action in dicts(record.get("actions")) for o in dicts(action.get("outcomes")) if o.get("applied")]


def _culprit(record: Mapping[str, Any]) -> str | None:
    blame = dicts(record.get("blame"))
    return str(blame[0].get("layer")) if blame else None


def _held(records: list[dict[str, Any]]) -> int:
    """Steps that were held, as far as the kept actions tell."""
    outcomes = [outcome for record in records for outcome in _outcomes(record)]
    return sum(one.get("remedy") == "skip" and one.get("coefficient") == 0.0 for one in outcomes)


def _done(record: Mapping[str, Any]) -> str:
    names = dict.fromkeys(str(o.get("remedy")) for o in _outcomes(record))
    return "remedy: " + ", ".join(names) if names else "no remedy was applied"


def _exhausted(record: Mapping[str, Any]) -> bool:
    return any(
        isinstance(action.get("decision"), dict) and action["decision"].get("exhausted") is True
        for action in dicts(record.get("actions"))
    )
