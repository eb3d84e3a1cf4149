"""What the page is told of an incident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .acts import act, detail
from .advice import advice
from .finding import aim, evidence, findings, is_layer, named, only_that_step, quantity, reason
from .record import Record, actions_of, dicts, number, whole
from .standing import STATES, result, state
from .trials import became, because, is_new, levels, tried
from .words import gains, tidy

_MOVED = "its weights changed by"


def tell(record: Record) -> dict[str, Any]:
    """Return what the page shows.

    ``state``, its ``level``, ``glyph`` and ``word``, ``evidence``, ``findings`` and ``trials``, ``done``.
    """
    stands, actions = state(record), actions_of(record)
    colour, glyph, word = STATES[stands]
    return {
        "state": stands,
        "level": colour,
        "glyph": glyph,
        "word": word,
        "result": result(record),
        "evidence": _evidence(actions[0]) if actions else None,
        "because": because(actions[0]) if actions else "",
        "next": advice(record),
        "findings": [{"name": name, "text": text} for name, text in findings(record, trials=False)],
        "trials": [_trial(one, record) for one in dicts(record.get("trials"))],
        "done": _deeds(actions),
        "only": only_that_step(record),
        "blame": [
            {
                **one,
                # One number is enough of one thing: the reason tells how far the weights were moved.
                "weight_ratio": None if _MOVED in str(one.get("reason")) else one.get("weight_ratio"),
                "named": named(one),
                "is_layer": is_layer(str(one.get("layer"))),
                "gains": gains(one),
                "reason": tidy(str(one.get("reason") or "")),
            }
            for one in dicts(record.get("blame"))
        ],
    }


def _evidence(action: Record) -> dict[str, Any]:
    return {"measured": evidence(action), "reason": reason(action), "quantity": quantity(action)}


def _trial(one: Record, record: Record) -> dict[str, Any]:
    outcome = str(one.get("outcome"))
    return {
        "treatment": f"{tried(one, record)} at step {whole(one.get('opened'))}",
        "name": {"kept": "kept", "taken back": "taken back"}.get(outcome, "tried"),
        "cause": aim(one, record),
        "became": became(one, record),
        "levels": levels(one, record),
        "is_new": is_new(one, record),
        "numbers": [number(one.get(key)) for key in ("before", "trouble", "after")],
    }


def _deeds(actions: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what the remedies did, each kind once, with how often and the detail of the first."""
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for outcome in (o for action in actions for o in dicts(action.get("outcomes"))):
        key = str(outcome.get("remedy")), outcome.get("applied") is not False
        deed = {"remedy": key[0], "act": act(outcome), "applied": key[1], "times": 0, "detail": detail(outcome)}
        found.setdefault(key, deed)["times"] += 1
    return list(found.values())
