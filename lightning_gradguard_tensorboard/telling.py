"""How an incident stands, and what was found, tried, kept and taken back, from its JSON and in words for a person.

The words are those of the guard's own report; they are said again here since this package runs without the guard, and reads what any of
its versions has written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

STATES = {
    "open": ("bad", "●", "open"),
    "helped": ("good", "✓", "helped"),
    "kept": ("warning", "–", "kept"),
    "calm": ("good", "✓", "calm again"),
    "anew": ("warning", "↻", "learned anew"),
    "failed": ("bad", "✕", "did not help"),
}
"""For each state the colour, a glyph, and a word or two."""
_DONE = {
    "skip": "skipped the step",
    "clip": "clipped the gradients",
    "backoff": "lowered the learning rate",
    "limit_norm": "clipped every step",
    "rollback": "rolled back to a good snapshot",
    "reinitialize": "re-initialised the layer",
    "initialize": "initialised all layers anew",
    "regularize": "pulled the weights towards good ones",
    "augment": "augmented the batches",
    "swap-activation": "swapped an activation",
}
_CAUSES = {
    "batch": "the data of that step",
    "layer": "single layers",
    "start": "the initialisation as a whole, or the scale of what it meets",
    "learning rate": "updates that are too large: the learning rate",
    "optimizer": "the optimizer's state or its numbers",
    "loss": "the loss function, or what lies between the model's output and it",
    "new regime": "data, loss or task have changed for good",
    "unknown": "could not be told",
}
_FIRST_AID = frozenset({"skip", "clip"})
_ON_TRIAL = frozenset({"backoff", "rollback", "reinitialize", "initialize", "limit_norm"})


def tell(record: Record) -> dict[str, Any]:
    """Return what the page shows: ``state``, its ``level``, ``glyph`` and ``word``, ``findings`` (name and text), and ``trials``."""
    stands = state(record)
    level, glyph, word = STATES[stands]
    return {
        "state": stands,
        "level": level,
        "glyph": glyph,
        "word": word,
        "findings": [{"name": name, "text": text} for name, text in _findings(record)],
        "trials": [_trial(trial, record) for trial in _trials(record)],
    }


def state(record: Record) -> str:
    """Return a key of :data:`STATES`; ``helped`` only if a loss was the better for a treatment, or an older version says so."""
    if record.get("closed") is None:
        return "open"
    last = _decision(_actions(record)[-1]) if _actions(record) else {}
    if last.get("cause") == "new regime" and last.get("exhausted") is not True and not watched(record):
        return "anew"
    if not isinstance(record.get("helped"), bool):
        return "calm"
    if record["helped"] is False:
        return "failed"
    trials = _trials(record)
    return "helped" if not trials or any(_improved(trial, record) for trial in trials) else "kept"


def watched(record: Record) -> bool:
    """Tell whether nothing was done although something was decided, as in ``mode="watch"``."""
    actions = _actions(record)
    return any(_remedies(action) for action in actions) and not any(dicts(a.get("outcomes")) for a in actions)


def remains(record: Record) -> str:
    """Return what is left when no treatment is, or the budget is spent; else nothing."""
    actions, stands = _actions(record), state(record)
    if stands == "failed" and actions and _decision(actions[-1]).get("exhausted") is True:
        return "nothing: the budget is spent"
    gone = _resigned(record) and stands in ("open", "failed", "calm")
    return "first aid only: the run goes on as you wrote it" if gone else ""


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, and nothing of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _findings(record: Record) -> Iterable[tuple[str, str]]:
    stands = state(record)
    if found := _cause(record):
        yield ("Suspect" if _trials(record) and stands == "failed" else "Cause"), found
    if pending := _pending(record):
        yield "On trial", pending
    if would := _would_have(record):
        yield "Watched", would
    if stands == "anew":
        yield "Regime", "what is healthy is learned anew from here on"
    if left := remains(record):
        yield "Left", left


def _trial(trial: Record, record: Record) -> dict[str, str]:
    names, step = _words(trial.get("treatment")), _whole(trial.get("opened"))
    levels = [_number(trial.get(key)) for key in ("before", "trouble", "after")]
    before, trouble, after = ("NaN or unknown" if math.isnan(level) else _short(level) for level in levels)
    known = f"loss before the trouble {before}, in it {trouble}, at the end {after}"
    return {
        "treatment": f"{_treatment(names)} at step {step}",
        "name": {"kept": "Kept", "taken back": "Taken back"}.get(str(trial.get("outcome")), "Tried"),
        "cause": _CAUSES.get(str(trial.get("cause")), str(trial.get("cause"))),
        "became": _became(trial, record),
        "levels": "no loss was known" if all(map(math.isnan, levels)) else known,
    }


def _became(trial: Record, record: Record) -> str:
    outcome, step = trial.get("outcome"), _whole(trial.get("closed"))
    if outcome == "calm":
        return f"left as it is at step {step}, no loss was known to measure it by"
    why = _why(outcome, *(_number(trial.get(key)) for key in ("before", "trouble", "after")))
    alarms = [_verdict(action) for action in _actions(record) if action.get("step") == trial.get("closed")]
    if outcome == "taken back" and alarms and not (alarms[-1].get("detector") == "trial" and alarms[-1].get("examine")):
        why = f"there was trouble again ({alarms[-1].get('form')})"
    return f"{outcome or '?'} at step {step}" + (f", {why}" if why else "")


def _why(outcome: Any, before: float, trouble: float, after: float) -> str:
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


def _improved(trial: Record, record: Record) -> bool:
    trouble, after = _number(trial.get("trouble")), _number(trial.get("after"))
    if trial.get("outcome") != "kept" or not math.isfinite(after):
        return False
    forms = [_verdict(action).get("form") for action in _actions(record)]
    return after < trouble or (math.isnan(trouble) and "non-finite" in forms)


def _cause(record: Record) -> str:
    actions, trials = _actions(record), _trials(record)
    told = [str(cause) for action in actions if (cause := _decision(action).get("cause"))]
    named = [name for name in told if name != "unknown"]
    if state(record) == "anew":
        found = told[-1]
    elif watched(record):
        # Where nothing is done the trouble spreads, and only the first finding is of what began it.
        found = (named or told or [""])[0]
    else:
        kept = [str(trial.get("cause")) for trial in trials if trial.get("outcome") == "kept"]
        treated = [str(_decision(action).get("cause") or "") for action in actions if _treats(action)]
        tried = [str(trial.get("cause")) for trial in trials]
        found = (kept or treated or tried or named or told or [""])[-1]
    layers = _at_fault(record) if found == "layer" else []
    return (
        f"{'layer' if len(layers) == 1 else 'layers'} {' and '.join(layers)}" if layers else _CAUSES.get(found, found)
    )


def _at_fault(record: Record) -> list[str]:
    outcomes = [o for a in _actions(record) for o in _applied(a) if o.get("remedy") == "reinitialize"]
    blamed = [str(blame.get("layer")) for blame in dicts(record.get("blame")) if blame.get("layer") != "batch"]
    return [layer or "the root module" for layer in (_words(outcomes[-1].get("layers")) if outcomes else blamed)[:2]]


def _pending(record: Record) -> str:
    treating = [action for action in _actions(record) if _treats(action) and dicts(action.get("outcomes"))]
    if record.get("closed") is not None or not treating or _resigned(record):
        return ""
    step = treating[-1].get("step")
    if any(trial.get("opened") == step for trial in _trials(record)):
        return ""
    names = [name for o in _applied(treating[-1]) if (name := str(o.get("remedy"))) in _ON_TRIAL]
    return f"{_treatment(names)} at step {_whole(step)}"


def _would_have(record: Record) -> str:
    if not watched(record):
        return ""
    actions = _actions(record)
    first_aid = [n for a in actions if not _treats(a) for n in _remedies(a) if n in _FIRST_AID]
    treatments = [tuple(n for n in _remedies(a) if n not in _FIRST_AID) for a in actions if _treats(a)]
    steps = [_treatment([name]) for name in dict.fromkeys(first_aid)]
    steps += [_treatment(names) for names in dict.fromkeys(treatments)]
    if any(_decision(action).get("cause") == "new regime" for action in actions):
        steps.append("learned anew what is healthy")
    return f"would have {'; then '.join(steps)}" if steps else ""


def _resigned(record: Record) -> bool:
    turns = [_decision(a).get("resign") is True for a in _actions(record) if _decision(a).get("resign") or _treats(a)]
    return turns[-1:] == [True] and not watched(record)


def _treats(action: Record) -> bool:
    decision = _decision(action)
    names = [str(o.get("remedy")) for o in _applied(action)] if dicts(action.get("outcomes")) else _remedies(action)
    return not (decision.get("look") or decision.get("again")) and not _ON_TRIAL.isdisjoint(names)


def _actions(record: Record) -> list[dict[str, Any]]:
    return dicts(record.get("actions"))


def _trials(record: Record) -> list[dict[str, Any]]:
    return dicts(record.get("trials"))


def _decision(action: Record) -> dict[str, Any]:
    decision = action.get("decision")
    return decision if isinstance(decision, dict) else {}


def _verdict(action: Record) -> dict[str, Any]:
    verdict = action.get("verdict")
    return verdict if isinstance(verdict, dict) else {}


def _remedies(action: Record) -> list[str]:
    return _words(_decision(action).get("remedies"))


def _applied(action: Record) -> list[dict[str, Any]]:
    return [outcome for outcome in dicts(action.get("outcomes")) if outcome.get("applied")]


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _treatment(names: Sequence[str]) -> str:
    done = [_DONE.get(name, f"applied {name}") for name in names] or ["nothing was changed"]
    return f"{', '.join(done[:-1])} and {done[-1]}" if done[1:] else done[0]


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _short(value: float) -> str:
    if not math.isfinite(value):
        return repr(value)
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
