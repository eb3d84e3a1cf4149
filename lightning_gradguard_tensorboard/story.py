"""The incidents of a run, the sentence that says how it is, and the five answers below it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .series import Axis
from .telling import (
    cause,
    clean,
    count,
    dicts,
    improved,
    left,
    level,
    number,
    on_trial,
    pending,
    short,
    state,
    tell,
    tidy,
    treatment,
    tried,
    watched,
    why_stopped,
)

Level = Literal["good", "warning", "bad"]
Words = list[dict[str, str]]
"""A sentence in pieces, ``{"text": ...}`` or ``{"layer": ...}``: the page parses no markup."""

LONGEST = 2**20
"""Bytes of an event; the guard's longest, of twenty actions with all their evidence, has some ten thousand."""
DEEPEST = 40
"""Levels of an event's JSON; the guard's have nine."""
SETTLED = 500
"""Steps without trouble after which what is over is no cause for amber any more."""


@dataclass(frozen=True, slots=True)
class Event:
    """One incident event as it was read."""

    tick: int
    wall_time: float
    optimizer: int
    payload: Mapping[str, Any]


def parse_event(tick: int, wall_time: float, optimizer: int, tensor: Any) -> Event | None:
    """Read one event from a tensor that holds one text, or return None if it is not what it should be, or cannot be told."""
    try:
        text = tensor if isinstance(tensor, (bytes, str)) else tensor.item()
        payload = json.loads(text, parse_int=_whole) if len(text) <= LONGEST else None
        if not isinstance(payload, dict) or _deeper(payload, DEEPEST):
            return None
        event = Event(tick, wall_time, optimizer, payload)
        # Whoever wrote it, what cannot be told must not take the others with it.
        verdict(incidents([event], {}), None)
        notices([event])
    except Exception:
        return None
    return event


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 17 else float(digits)


def _deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most == 0 or any(_deeper(one, most - 1) for one in inner)


def incidents(events: Iterable[Event], axes: Mapping[int, Axis]) -> list[dict[str, Any]]:
    """Merge events to one record per incident, newest first.

    The last event of an incident holds all that is known of it; each place on the axis is that of the event in which its step was first
    heard of, before a rollback could have moved the run.

    Args:
        events: In the order of their ticks.
        axes: The axis of each optimizer.
    """
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    heard: dict[tuple[int, int, int], float] = {}
    for event in events:
        record = event.payload.get("incident")
        if not isinstance(record, dict):
            continue
        optimizer = _integer(record.get("optimizer"), event.optimizer)
        own = _integer(record.get("number"), 0)
        if own < 1:
            continue
        step = _integer(record.get("step"), _integer(event.payload.get("step"), 0))
        known, axis = merged.get((optimizer, own)), axes.get(optimizer)

        def place(
            at: Any, axis: Axis | None = axis, key: tuple[int, int] = (optimizer, own), now: float = event.wall_time
        ) -> float:
            found = _integer(at, 0)
            return heard.setdefault((*key, found), axis.place(found, now) if axis else float(found))

        told = tell(record)
        for one, shown in zip(dicts(record.get("trials")), told["trials"], strict=True):
            shown |= {
                "from": place(one.get("opened")),
                "to": place(one.get("closed")),
                "outcome": str(one.get("outcome")),
            }
        if (open_trial := pending(record)) is not None:
            told["pending"] = {"treatment": on_trial(record), "from": place(open_trial.get("step"))}
        merged[optimizer, own] = {
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
    """Return what was said outside any incident, newest first; what differs only in its numbers is said once, with how often."""
    folded: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event.payload.get("incident"), dict) or not event.payload.get("message"):
            continue
        message, step = tidy(str(event.payload["message"])), _integer(event.payload.get("step"), 0)
        key = re.sub(r"\d[\d.,e+-]*", "#", message)
        before = folded.pop(key, {"first": step, "times": 0})
        folded[key] = {"step": step, "first": before["first"], "times": before["times"] + 1, "message": message}
    return list(folded.values())[::-1]


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
        ``level`` (green, amber or red), ``headline`` (one or two words), ``words``, and ``answers`` to the five questions.

    >>> verdict([], (12400.0, 12399))["words"]
    [{'text': 'No incident in 12,400 steps.'}]
    """
    counts = counts or {}
    steps = f"{end[1] + 1:,} steps" if end else "this run"
    restless = f"the norm has been non-finite or over its limit since step {restless_since or 0:,}"
    if not records:
        if restless_since is None:
            routine = counts.get("overflows", 0)
            aside = f" The GradScaler skipped {count(routine, 'step')} by itself, as it should." if routine else ""
            return _verdict("good", "Healthy", [{"text": f"No incident in {steps}.{aside}"}], [])
        words: Words = [{"text": f"No incident was recorded in {steps}, but {restless}."}]
        return _verdict("bad", "Out of its band", words, [])

    newest = records[0]
    # The newest window may not have been written yet, and an old log does not count at all.
    held, clipped = max(counts.get("skipped", 0), _held(records)), counts.get("clipped", 0)
    done = [f"{count(held, 'step')} skipped"] if held else []
    done += [f"{count(clipped, 'step')} clipped"] if clipped else []
    calm = end[0] - 1 - newest["place"] if end else 0.0

    def answered(now: str) -> list[dict[str, Any]]:
        return [
            {"question": "Now", "words": [{"text": now}]},
            {"question": "When", "words": _when(records)},
            {"question": "Where", "words": _where(newest)},
            {
                "question": "Done",
                "words": [{"text": "; ".join([", ".join(done)] * bool(done) + _treatments(newest)) or _done(newest)}],
            },
            {"question": "Did it help?", "words": [{"text": _helped(newest)}]},
        ]

    if (stopped := _stopped(newest, end)) is not None:
        why, culprit = why_stopped(newest) or "the budget is spent", _culprit(newest)
        first: Words = [{"text": "it began"}] if culprit is None else [{"text": "first "}, {"layer": culprit}]
        words = [{"text": f"{why}; "}, *first, {"text": f" at step {newest['step']:,}."}]
        headline = f"Stopped by GradGuard at step {stopped:,}:"
        return _verdict("bad", headline, words, answered(f"stopped at step {stopped:,}: {why}"))

    words = [
        {"text": f"{count(len(records), 'incident')} in {steps}; the last: {newest.get('form', 'unknown')}"},
        {"text": f" at step {newest['step']:,}"},
    ]
    if culprit := _culprit(newest):
        words += [{"text": ", the batch"}] if culprit == "batch" else [{"text": ", first in "}, {"layer": culprit}]
    words.append({"text": f"; {', '.join(done) or _done(newest)}"})

    if state(newest) in ("failed", "stopped") or any(_exhausted(record) for record in records):
        told = "; the remedies did not help." if _outcomes(newest) else "; the run went on."
        if dicts(newest.get("trials")) and state(newest) == "failed":
            remains = left(newest)
            told = "; nothing that was tried helped, and it was taken back" + (
                f"; left: {remains}." if remains else "."
            )
        return _verdict("bad", "Not healed", [*words, {"text": told}], answered(left(newest) or "not healed"))
    if newest.get("closed") is None:
        return _verdict(
            "bad", "In trouble", [*words, {"text": "; not over yet."}], answered("in trouble, not over yet")
        )
    if restless_since is not None:
        return _verdict("bad", "Out of its band", [*words, {"text": f"; {restless}."}], answered(restless))
    states = {state(record) for record in records}
    if state(newest) == "anew":
        words.append({"text": "; data, loss or task have changed for good, and what is healthy was learned anew"})
    if all(map(watched, records)):
        words.append({"text": "; nothing was changed, only watched"})
    how = "healthy" if "helped" in states else "calm"
    words.append({"text": f"; {how} for {calm:,.0f} steps since." if calm >= 1 else f"; {how} since."})
    now = f"{how} for {calm:,.0f} steps" if calm >= 1 else f"{how} again"
    if states == {"calm"}:
        return _verdict("good", "Calm again", words, answered(now))
    headline = "Learned anew" if state(newest) == "anew" else "Recovered" if "helped" in states else "Calm again"
    return _verdict("good" if calm >= SETTLED else "warning", headline, words, answered(now))


def sentence(said: Mapping[str, Any]) -> str:
    """Return a verdict as one line of text: ``Recovered. 1 incident in 2,400 steps; ...``."""
    words = "".join(clean(word.get("text", word.get("layer", ""))) for word in said["words"])
    return f"{said['headline']}{'' if said['headline'].endswith(':') else '.'} {words}"


def layers_told_of(events: Iterable[Event]) -> set[str]:
    """Return the layers that any incident blames or has repaired."""
    told: set[str] = set()
    for event in events:
        record = event.payload.get("incident")
        if isinstance(record, dict):
            told |= {str(one.get("layer")) for one in dicts(record.get("blame"))}
            told |= {str(name) for one in _outcomes(record) for name in one.get("layers") or ()}
    return told


def amend(said: dict[str, Any], unusual: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a verdict that also tells of layers that have left their level for good: a run is not called healthy over them.

    Args:
        said: The verdict.
        unusual: The layers: ``layer``, ``step`` and ``factor``, the largest leap first.
    """
    if not unusual:
        return said
    since = f"{count(len(unusual), 'layer')} unusual since step {min(int(one['step']) for one in unusual):,}"
    told: Words = [{"text": f" {since}: " if said["answers"] or said["level"] != "good" else ""}]
    for index, one in enumerate(unusual[:3]):
        times = f"{short(one['factor'])} x" if one["factor"] >= 1.0 else f"1/{short(1.0 / one['factor'])} of"
        told += [{"text": ", " if index else ""}, {"layer": str(one["layer"])}, {"text": f" has {times} its gradient"}]
    told.append({"text": f" and {len(unusual) - 3:,} more." if unusual[3:] else "."})
    if said["level"] != "good":
        return {**said, "words": [*said["words"], *told]}
    if said["answers"]:
        return {**said, "level": "warning", "words": [*said["words"], *told]}
    return {**said, "level": "warning", "headline": f"{since}:", "words": [*told, {"text": " "}, *said["words"]]}


def _verdict(level: Level, headline: str, words: Words, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"level": level, "headline": headline, "words": words, "answers": answers}


def _stopped(newest: Mapping[str, Any], end: tuple[float, int] | None) -> int | None:
    """Return the step at which the guard ended the run, or None where it went on, as a resumed one does."""
    if state(newest) != "stopped":
        return None
    stopped = int(newest["stopped"])
    return stopped if end is None or end[0] - 1 <= (newest.get("ended") or stopped) + 1 else None


def _when(records: list[dict[str, Any]]) -> Words:
    newest, before = records[0], len(records) - 1
    earlier = f"; {count(before, 'incident')} before it" if before else ""
    return [{"text": f"step {newest['step']:,}, {newest.get('form', 'unknown')}{earlier}"}]


def _where(record: Mapping[str, Any]) -> Words:
    culprit, found = _culprit(record), cause(record)
    if culprit is None:
        return [{"text": found or "could not be told"}]
    if culprit == "batch":
        return [{"text": "the batch" if found in ("", "the data of that step") else f"the batch: {found}"}]
    said = found and found not in (f"layer {culprit}", "could not be told")
    return [{"layer": culprit}, {"text": f": {found}" if said else ""}]


def _treatments(record: Mapping[str, Any]) -> list[str]:
    made = [tried(one, record) for one in dicts(record.get("trials"))]
    if (open_trial := pending(record)) is not None:
        applied = [o for o in dicts(open_trial.get("outcomes")) if o.get("applied")]
        made.append(
            treatment([str(o.get("remedy")) for o in applied if o.get("remedy") not in ("skip", "clip")], applied)
        )
    return list(dict.fromkeys(made))


def _helped(record: Mapping[str, Any]) -> str:
    """Answer whether it helped, by the loss before and after where one was known."""
    trials, stands = dicts(record.get("trials")), state(record)
    if watched(record):
        return "nothing was changed, only watched"
    if stands == "stopped":
        return "no: the run was stopped"
    if stands == "anew":
        return "what is healthy is learned anew"
    if not trials:
        aid = "not measured: first aid was all"
        return {"open": "not over yet", "failed": "no", "helped": "yes"}.get(stands, aid)
    last = trials[-1]
    before, trouble, after = (number(last.get(key)) for key in ("before", "trouble", "after"))
    numbers = f"loss {level(trouble)} → {level(after)}" + (
        f", before the trouble {short(before)}" if not math.isnan(before) else ""
    )
    lost = f"; taken back first: {count(len(trials) - 1, 'treatment')}" if trials[1:] else ""
    if math.isnan(trouble) and math.isnan(after):
        numbers = "no loss was known"
    if stands == "open":
        return f"not yet: {numbers}, taken back"
    if improved(last, record):
        return f"yes: {numbers}{lost}"
    return f"no: {numbers}, taken back" if last.get("outcome") == "taken back" else f"not shown: {numbers}{lost}"


def _integer(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _message(event: Event) -> list[str]:
    return [tidy(str(event.payload["message"]))] if event.payload.get("message") else []


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
