"""What was tried, what became of it, and what is left."""

from __future__ import annotations

import math
from typing import Any

from .acts import acts, treatment
from .record import Record, actions_of, applied, decided, decision_of, dicts, number, texts, verdict_of, whole
from .standing import DONE_AT_ONCE, remedies, state, watched
from .words import SPENT, clean, done, level, plain, tidy

LASTING = frozenset({"backoff", "rollback", "reinitialize", "initialize", "clear", "tune"})
"""Remedies whose treatment is put on trial."""


def trial(one: Record, record: Record) -> str:
    """Return what was tried, what became of it and why, as ``restored the layer at step 40: taken back ...``."""
    what = f"{tried(one, record)} at step {whole(one.get('opened'))}: {became(one, record)}"
    return what if one.get("outcome") == "calm" else f"{what} ({levels(one, record)})"


def tried(one: Record, record: Record) -> str:
    """Return a treatment in words, a repair by what it came to: ``restored the layer``."""
    outcomes = [o for a in actions_of(record) if a.get("step") == one.get("opened") for o in applied(a)]
    return treatment(texts(one.get("treatment")), outcomes)


def summary(record: Record) -> list[str]:
    """Return each treatment in a few words, with what became of it: ``restored the layer (taken back)``."""
    ends = {"kept": "kept", "taken back": "taken back"}
    made = []
    for one in dicts(record.get("trials")):
        told = tried(one, record).replace(" to a good snapshot", "")
        made.append(f"{told} ({ends.get(str(one.get('outcome')), 'not measured')})")
    if (last := _unended(record)) is not None and (record.get("closed") is None or record.get("stopped") is not None):
        ends_with_run = "on trial" if record.get("closed") is None else "on trial when the run was stopped"
        made.append(f"{_made(last)} ({ends_with_run})".replace(" to a good snapshot", ""))
    return [f"{told}, {made.count(told)} times" if made.count(told) > 1 else told for told in dict.fromkeys(made)]


def deeds(record: Record) -> str:
    """Return all that was done, and what became of treatments: ``skipped the step; restored the layer (kept)``."""
    tried = summary(record)
    but = LASTING if tried else frozenset[str]()
    names = [name for name in remedies(record) if name not in but]
    return "; ".join([acts(record, but)] * bool(names or not tried) + tried)


def became(one: Record, record: Record) -> str:
    """Return what became of a treatment, and why: ``taken back at step 104, there was trouble again (drift)``."""
    outcome, step = str(one.get("outcome") or "?"), whole(one.get("closed"))
    if outcome == "calm":
        return f"left as it is at step {step}, no loss was known to measure it by"
    alarms = [verdict_of(action) for action in actions_of(record) if action.get("step") == one.get("closed")]
    why = _why(outcome, *(number(one.get(key)) for key in ("before", "trouble", "after")))
    if outcome == "taken back" and alarms and not (alarms[-1].get("detector") == "trial" and alarms[-1].get("examine")):
        why = f"there was trouble again ({clean(str(alarms[-1].get('form')))})"
    return f"{clean(outcome)} at step {step}" + (f", {why}" if why else "")


def _why(outcome: str, before: float, trouble: float, after: float) -> str:
    if outcome == "kept":
        if after < trouble:
            return "the loss is lower than in the trouble"
        return "the loss is no higher than before the trouble" if after <= before else ""
    if outcome != "taken back":
        return ""
    if math.isnan(after):
        return "no finite loss was seen after it"
    if after >= trouble:
        return "the loss was no better than in the trouble"
    return "the loss was not back where it had been" if after > before else "the loss did not prove a cure"


def levels(one: Record, record: Record | None = None) -> str:
    """Return the known levels of the loss: ``loss before the trouble 0.04, in it 6.1, at the end 6``.

    Of losses that are all NaN no more is known than of none. Where the trial before it in the same incident has told
    of the trouble, only how it ended is new.
    """
    told = {"before the trouble": "before", "in it": "trouble", "at the end": "after"}
    if not is_new(one, record) and not math.isnan(number(one.get("after"))):
        told = {"at the end": "after"}
    known = [f"{words} {level(value)}" for words, key in told.items() if not math.isnan(value := number(one.get(key)))]
    if "trouble" in told.values() and number(one.get("trouble")) <= number(one.get("before")):
        # It was the gradient that gave the alarm: said beside the numbers, which would contradict it.
        known[1] += " (not higher: the gradient told of the trouble, the loss did not yet)"
    return f"loss {', '.join(known)}" if known else "no loss was known"


def is_new(one: Record, record: Record | None) -> bool:
    """Tell whether a trial's levels before and in the trouble are not those of the trial before it."""
    trials = dicts(record.get("trials")) if record is not None else []
    at = next((i for i, other in enumerate(trials) if other.get("opened") == one.get("opened")), 0)
    return at == 0 or any(trials[at - 1].get(key) != one.get(key) for key in ("before", "trouble"))


def on_trial(record: Record) -> str:
    """Return the treatment that is still on trial in an open incident, as ``rolled back at step 40``, or nothing."""
    last = pending(record)
    return "" if last is None else f"{_made(last)} at step {whole(last.get('step'))}"


def _made(action: Record) -> str:
    done = applied(action)
    return treatment([name for o in done if (name := str(o.get("remedy"))) in LASTING], done)


def pending(record: Record) -> dict[str, Any] | None:
    """Return the action whose treatment is still on trial, or None."""
    return _unended(record) if record.get("closed") is None else None


def _unended(record: Record) -> dict[str, Any] | None:
    """Return the last treating action of which no trial has told the end, or None."""
    treating = [action for action in actions_of(record) if treats(action) and dicts(action.get("outcomes"))]
    if not treating or resigned(record):
        return None
    ended = any(one.get("opened") == treating[-1].get("step") for one in dicts(record.get("trials")))
    return None if ended else treating[-1]


def treats(action: Record) -> bool:
    """Tell whether this action makes, or would make, a treatment that is put on trial."""
    decision = decision_of(action)
    names = [str(o.get("remedy")) for o in applied(action)] if dicts(action.get("outcomes")) else decided(action)
    return not (decision.get("look") or decision.get("again")) and not LASTING.isdisjoint(names)


def resigned(record: Record) -> bool:
    """Tell whether the guard has given up treating, and goes on with first aid."""
    turns = [
        decision_of(a).get("resign") is True for a in actions_of(record) if decision_of(a).get("resign") or treats(a)
    ]
    return turns[-1:] == [True] and not watched(record)


def would_have(record: Record) -> str:
    """Return what would have been done where nothing was: ``would have skipped the step; then ...``; else nothing."""
    if not watched(record):
        return ""
    actions = actions_of(record)
    first_aid = [n for a in actions if not treats(a) for n in decided(a) if n in DONE_AT_ONCE]
    treatments = [tuple(n for n in decided(a) if n not in DONE_AT_ONCE) for a in actions if treats(a)]
    steps = [done((name,)) for name in dict.fromkeys(first_aid)] + [treatment(t) for t in dict.fromkeys(treatments)]
    if any(decision_of(action).get("cause") == "new regime" for action in actions):
        steps.append("learned anew what is healthy")
    return f"would have {'; then '.join(steps)}" if steps else ""


def left(record: Record) -> str:
    """Return what is left to try while that matters: in an incident that is open, or that was given up.

    It is nothing where the budget is spent, or first aid where no treatment is left. Else nothing is returned: a run
    that was stopped says why it was, and trouble that went by needs no treatment.
    """
    actions, stands = actions_of(record), state(record)
    if stands == "failed" and actions and decision_of(actions[-1]).get("exhausted") is True:
        return f"nothing: {tidy(plain(clean(str(decision_of(actions[-1]).get('reason') or SPENT))))}"
    gone = resigned(record) and stands in ("open", "failed")
    return "only skipping and clipping: the run goes on as you wrote it" if gone else ""


def because(action: Record) -> str:
    """Return why it was decided so."""
    return tidy(plain(clean(str(decision_of(action).get("reason") or ""))))


def undone(action: Record) -> str:
    """Return what is said of an action whose decision changed nothing: what it would have done, and why."""
    names, reason = decided(action), because(action)
    if not names:
        return reason
    return f"would have {treatment(names)}" + (f": {reason}" if reason else "")
