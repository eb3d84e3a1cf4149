"""How an incident stands, and what was found, tried, kept and taken back, in words for a person.

These are the only words there are: console, text, report, notebook and tab all say them. They are told from an incident's JSON, so that an
incident of any version can be told, and by this package, since it runs without the guard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

STATES = {
    "open": ("bad", "●", "open"),
    "stopped": ("bad", "■", "stopped the run"),
    "helped": ("good", "✓", "helped"),
    "kept": ("warning", "–", "kept"),
    "calm": ("good", "✓", "calm again"),
    "anew": ("warning", "↻", "learned anew"),
    "failed": ("bad", "✕", "did not help"),
}
"""For each state the colour, a glyph, and a word or two. ``kept``: a treatment stays, but no loss shows that it made anything better;
``calm``: no treatment was measured; ``anew``: data, loss or task have changed for good, and what is healthy is learned anew."""
_DONE = {
    "skip": "skipped the step",
    "clip": "clipped the gradients",
    "backoff": "lowered the learning rate",
    "rollback": "rolled back to a good snapshot",
    "reinitialize": "repaired the layer",
    "initialize": "initialised all layers anew",
    "regularize": "pulled the weights towards good ones",
    "augment": "augmented the batches",
    "swap-activation": "swapped an activation",
}
_REPAIRS = {
    "restored from": "restored the layer",
    "rescaled": "rescaled the layer",
    "divided by": "rescaled the layer",
    "redrawn": "re-initialised the layer",
    "set to zero": "set stray weights of the layer to zero",
}
"""What a repair is called by what the remedy says that it did."""
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
_RATE = "learning rate "
_FEW_SAMPLES = 8
_NO_LAYERS = frozenset({"learning rate", "start", "new regime"})
"""Causes of which every layer is a victim, so that the one that shows most is not the first."""
_ON_TRIAL = frozenset({"backoff", "rollback", "reinitialize", "initialize"})
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?e[+-]?\d+(?![\w.])")
_COUNT = re.compile(r"(?<![\w.,])\d{4,}(?![\w.]\w|\w)")


# -- small words ---------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return text fit for one line of a terminal: control characters (escape sequences, newlines) made visible.

    >>> clean("conv\\x1b[31m1")
    'conv\\ufffd[31m1'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def short(value: float) -> str:
    """Return a measured value in three digits, everywhere alike.

    >>> [short(v) for v in (0.0133, 57.25, 14943.0, 1.5e10, 0.00062, float("inf"))]
    ['0.0133', '57.2', '14,900', '1.5e10', '6.2e-4', 'inf']
    """
    if math.isnan(value):
        return "NaN"
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf"
    rounded = float(f"{value:.3g}")
    if rounded == 0.0 or 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"
    mantissa, exponent = f"{rounded:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def tidy(text: str) -> str:
    """Return a sentence with the numbers in it written as :func:`short` writes them.

    >>> tidy("norm 1.49e+04 is 1.8e+05 x the typical 0.175")
    'norm 14,900 is 180,000 x the typical 0.175'
    >>> tidy("went back to step 1450. layers.1000 and conv2048 stay")
    'went back to step 1,450. layers.1000 and conv2048 stay'
    """
    return _COUNT.sub(lambda found: f"{int(found[0]):,}", _NUMBER.sub(lambda found: short(float(found[0])), text))


def count(amount: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``, ``1,900 steps``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def done(names: Sequence[str]) -> str:
    """Return what was done, in words: ``skipped the step, lowered the learning rate``."""
    return ", ".join(_DONE.get(name, f"applied {clean(name)}") for name in names) or "nothing was changed"


def cause_named(name: str) -> str:
    """Return a cause in words, one that this version does not know as it is."""
    return _CAUSES.get(name, clean(name))


def gains(blame: Record) -> str:
    """Return what was measured of a suspect, such as ``forward gain 57 x``; empty where nothing was."""
    measured = (
        ("forward gain", blame.get("forward_gain")),
        ("backward gain", blame.get("backward_gain")),
        ("weights", blame.get("weight_ratio")),
    )
    return ", ".join(f"{name} {short(number(value))} x" for name, value in measured if value is not None)


def optimizer_names(layers: Sequence[Sequence[str]]) -> list[str]:
    """Name each optimizer by the module that all its layers have in common, or else by what they are in; by number where that says nothing.

    >>> optimizer_names([["generator.0", "generator.2"], ["critic.0"]])
    ['generator', 'critic']
    >>> optimizer_names([["a.0", "b.0"], []])
    ['a, b', 'optimizer 1']
    """
    names = []
    for index, own in enumerate(layers):
        paths = [name.split(".") for name in own]
        same = 0
        while paths and all(same < len(path) - 1 and path[same] == paths[0][same] for path in paths):
            same += 1
        tops = list(dict.fromkeys(path[0] for path in paths))
        named = ".".join(paths[0][:same]) if same else ", ".join(tops[:2]) + (", ..." if tops[2:] else "")
        names.append(named or f"optimizer {index}")
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


# -- how it stands -------------------------------------------------------------------------------------------------------


def state(record: Record) -> str:
    """Return a key of :data:`STATES`; ``helped`` only if a loss was the better for a treatment, or an older version says so."""
    if record.get("closed") is None:
        return "open"
    if isinstance(record.get("stopped"), int):
        return "stopped"
    last = _decision(_actions(record)[-1]) if _actions(record) else {}
    if last.get("cause") == "new regime" and last.get("exhausted") is not True and not watched(record):
        return "anew"
    trials = dicts(record.get("trials"))
    if not isinstance(record.get("helped"), bool):
        return "kept" if any(trial.get("outcome") == "kept" for trial in trials) else "calm"
    if record["helped"] is False:
        return "failed"
    return "helped" if not trials or any(improved(trial, record) for trial in trials) else "kept"


def improved(trial: Record, record: Record) -> bool:
    """Tell whether a treatment was kept and the loss was lower at its end, or, after gradients that were not finite, is known again."""
    trouble, after = number(trial.get("trouble")), number(trial.get("after"))
    if trial.get("outcome") != "kept" or not math.isfinite(after):
        return False
    forms = [_verdict(action).get("form") for action in _actions(record)]
    return after < trouble or (math.isnan(trouble) and "non-finite" in forms)


def watched(record: Record) -> bool:
    """Tell whether nothing was done although something was decided, as in ``mode="watch"``."""
    actions = _actions(record)
    return any(_remedies(action) for action in actions) and not any(dicts(a.get("outcomes")) for a in actions)


def halted(record: Record) -> bool:
    """Tell whether the run was ended at its first bad step, as in ``mode="halt"``."""
    last = _decision(_actions(record)[-1]) if _actions(record) else {}
    return state(record) == "stopped" and last.get("exhausted") is True and not _remedies(_actions(record)[-1])


def remedies(record: Record) -> list[str]:
    """Return the names of the remedies that were applied, in order of first use."""
    return list(dict.fromkeys(str(o.get("remedy")) for action in _actions(record) for o in _applied(action)))


def result(record: Record) -> str:
    """Return how an incident ended: ``calm again after 12 steps, helped``."""
    if record.get("closed") is None:
        return f"still open after {count(_integer(record.get('alarms')), 'alarming step')}"
    after = count(max(_integer(record.get("closed")) - _integer(record.get("step")), 0), "step")
    first_aid = not dicts(record.get("trials")) and remedies(record) and _FIRST_AID.issuperset(remedies(record))
    calm = "only watched" if watched(record) else "first aid only" if first_aid else ""
    if halted(record):
        return "the run was halted before this step was made"
    return {
        "stopped": f"the run was stopped after {after}, did not help",
        "helped": f"calm again after {after}, helped",
        "kept": f"calm again after {after}, what was done is kept",
        "calm": f"calm again after {after}" + (f", {calm}" if calm else ""),
        "anew": f"what is healthy is learned anew after {after}",
        "failed": f"given up after {after}, did not help",
    }[state(record)]


def why_stopped(record: Record) -> str:
    """Return why the guard ended the run: ``100 steps in a row were held``."""
    actions = [action for action in _actions(record) if _decision(action).get("exhausted") is True]
    return tidy(clean(str(_decision(actions[-1]).get("reason") or ""))) if actions else ""


def suspect(record: Record) -> str:
    """Return ``first in conv4 (forward gain 57 x)``, or an empty string where nobody is blamed, or no single layer is at fault."""
    blame = dicts(record.get("blame"))
    if not blame:
        return ""
    layer = str(blame[0].get("layer", "?"))
    told = [_decision(action).get("cause") for action in _actions(record)]
    if layer != "batch" and told and told[-1] in _NO_LAYERS:
        return ""
    name = _the_batch(blame[0]) if layer == "batch" else f"first in {clean(layer) or 'the root module'}"
    evidence = gains(blame[0])
    return f"{name} ({evidence})" if evidence else name


def _the_batch(blame: Record) -> str:
    """Return ``the batch of rank 1, sample 5``."""
    rank, samples = blame.get("rank"), [i for i in blame.get("samples") or () if isinstance(i, int)]
    of = f" of rank {rank}" if isinstance(rank, int) else ""
    listed = ", ".join(map(str, samples[:_FEW_SAMPLES])) + (", …" if len(samples) > _FEW_SAMPLES else "")
    return f"the batch{of}" + (f", {'sample' if len(samples) == 1 else 'samples'} {listed}" if samples else "")


def opening(record: Record) -> str:
    """Return the sentence that opens an incident: when, which form, where."""
    where = suspect(record)
    told = f"incident {_integer(record.get('number')):,} at step {_integer(record.get('step')):,}: {record.get('form')}"
    return told + (f", {where}" if where else "")


# -- what was found ------------------------------------------------------------------------------------------------------


def findings(record: Record, *, trials: bool = True) -> Iterable[tuple[str, str]]:
    """Yield what is known of cause and treatment, in the order in which it is told: ``("cause", "the learning rate")``, ...

    Args:
        record: The incident.
        trials: Whether to tell of the treatments one by one, which a table tells better.
    """
    stands, tried = state(record), dicts(record.get("trials"))
    if found := cause(record):
        yield ("suspected cause" if tried and stands == "failed" else "cause"), found
    for one in tried if trials else ():
        yield "tried", trial(one, record)
    if pending := on_trial(record):
        yield "on trial", pending
    actions = _actions(record)
    measured = [v.get("reason") for action in actions if (v := _verdict(action)).get("detector") == "initialize"]
    if measured:
        yield "measured", tidy(clean(str(measured[-1])))
    done = [one for action in actions for one in dicts(action.get("outcomes")) if one.get("applied") is True]
    rates = [str(one.get("detail")) for one in done if one.get("remedy") == "backoff"]
    if rates and rates[-1].startswith(_RATE) and not left(record):
        yield (
            "learning rate",
            f"lowered to {tidy(clean(rates[-1].removeprefix(_RATE)))}; it climbs while the loss falls",
        )
    if would := would_have(record):
        yield "only watched", would
    if stands == "anew":
        yield "new regime", "what is healthy is learned anew from here on"
    if remains := left(record):
        yield "left", remains
    if isinstance(kept := record.get("bundle"), str) and kept:
        yield "evidence", clean(kept)


def cause(record: Record) -> str:
    """Return what was found to be at fault: by the treatment that was kept, else the newest one, else by first aid; empty if unsaid."""
    actions, trials = _actions(record), dicts(record.get("trials"))
    told = [str(cause) for action in actions if (cause := _decision(action).get("cause"))]
    named = [name for name in told if name != "unknown"]
    if state(record) == "anew":
        found = told[-1]
    elif watched(record):
        # Where nothing is done the trouble spreads, and only the first finding is of what began it.
        found = (named or told or [""])[0]
    else:
        kept = [str(one.get("cause")) for one in trials if one.get("outcome") == "kept"]
        treated = [str(_decision(action).get("cause") or "") for action in actions if _treats(action)]
        tried = [str(one.get("cause")) for one in trials]
        found = (kept or treated or tried or named or told or [""])[-1]
    layers = [clean(layer) for layer in _at_fault(record)] if found == "layer" else []
    return f"{'layer' if len(layers) == 1 else 'layers'} {' and '.join(layers)}" if layers else cause_named(found)


def trial(one: Record, record: Record) -> str:
    """Return what was tried, what became of it and why: ``restored the layer at step 40: taken back at step 104, ...``."""
    return f"{tried(one, record)} at step {_whole(one.get('opened'))}: {became(one, record)} ({levels(one)})"


def tried(one: Record, record: Record) -> str:
    """Return a treatment in words, a repair by what it came to: ``restored the layer``."""
    outcomes = [o for a in _actions(record) if a.get("step") == one.get("opened") for o in _applied(a)]
    return treatment(_texts(one.get("treatment")), outcomes)


def treatment(names: Sequence[str], outcomes: Iterable[Record] = ()) -> str:
    """Return what was done as one: ``rolled back to a good snapshot and lowered the learning rate``."""
    repaired = _repair([o for o in outcomes if o.get("remedy") == "reinitialize"])
    made = [repaired if name == "reinitialize" else done((name,)) for name in names] or [done(())]
    return f"{', '.join(made[:-1])} and {made[-1]}" if made[1:] else made[0]


def _repair(outcomes: Sequence[Record]) -> str:
    said = " ".join(str(outcome.get("detail")) for outcome in outcomes)
    kinds = list(dict.fromkeys(words for key, words in _REPAIRS.items() if key in said))
    told = kinds[0] if len(kinds) == 1 else _DONE["reinitialize"]
    many = any(len(_texts(outcome.get("layers"))) > 1 for outcome in outcomes)
    return told.replace("the layer", "the layers") if many else told


def became(one: Record, record: Record) -> str:
    """Return what became of a treatment, and why: ``taken back at step 104, the loss was no better than in the trouble``."""
    outcome, step = str(one.get("outcome") or "?"), _whole(one.get("closed"))
    if outcome == "calm":
        return f"left as it is at step {step}, no loss was known to measure it by"
    alarms = [_verdict(action) for action in _actions(record) if action.get("step") == one.get("closed")]
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


def levels(one: Record) -> str:
    """Return the levels of the loss: ``loss before the trouble 0.04, in it 6.1, at the end 6``."""
    known = [number(one.get(key)) for key in ("before", "trouble", "after")]
    if all(map(math.isnan, known)):
        return "no loss was known"
    before, trouble, after = map(level, known)
    return f"loss before the trouble {before}, in it {trouble}, at the end {after}"


def level(value: float) -> str:
    """Return the level of a loss."""
    return "NaN or unknown" if math.isnan(value) else short(value)


def on_trial(record: Record) -> str:
    """Return the treatment that is still on trial in an open incident, such as ``rolled back ... at step 40``; else nothing."""
    last = pending(record)
    if last is None:
        return ""
    names = [name for o in _applied(last) if (name := str(o.get("remedy"))) in _ON_TRIAL]
    return f"{treatment(names, _applied(last))} at step {_whole(last.get('step'))}"


def pending(record: Record) -> dict[str, Any] | None:
    """Return the action whose treatment is still on trial, or None."""
    treating = [action for action in _actions(record) if _treats(action) and dicts(action.get("outcomes"))]
    if record.get("closed") is not None or not treating or _resigned(record):
        return None
    ended = any(one.get("opened") == treating[-1].get("step") for one in dicts(record.get("trials")))
    return None if ended else treating[-1]


def would_have(record: Record) -> str:
    """Return what would have been done where nothing was: ``would have skipped the step; then ...``; else nothing."""
    if not watched(record):
        return ""
    actions = _actions(record)
    first_aid = [n for a in actions if not _treats(a) for n in _remedies(a) if n in _FIRST_AID]
    treatments = [tuple(n for n in _remedies(a) if n not in _FIRST_AID) for a in actions if _treats(a)]
    steps = [done((name,)) for name in dict.fromkeys(first_aid)] + [treatment(t) for t in dict.fromkeys(treatments)]
    if any(_decision(action).get("cause") == "new regime" for action in actions):
        steps.append("learned anew what is healthy")
    return f"would have {'; then '.join(steps)}" if steps else ""


def left(record: Record) -> str:
    """Return what is left when no treatment is, or the budget is spent; else nothing."""
    actions, stands = _actions(record), state(record)
    if halted(record):
        return ""
    if stands in ("failed", "stopped") and actions and _decision(actions[-1]).get("exhausted") is True:
        return "nothing: the budget is spent"
    gone = _resigned(record) and stands in ("open", "failed", "calm")
    return "first aid only: the run goes on as you wrote it" if gone else ""


def undone(action: Record) -> str:
    """Return what is said of an action whose decision changed nothing: what it would have done, and why."""
    names, reason = _remedies(action), tidy(clean(str(_decision(action).get("reason") or "")))
    if not names:
        return reason
    return f"would have {treatment(names)}" + (f": {reason}" if reason else "")


def evidence(action: Record) -> str:
    """Return what was measured, and what it was compared with: ``310 against a limit of 3.7 (84 x)``."""
    verdict = _verdict(action)
    value, limit = number(verdict.get("value")), number(verdict.get("limit"))
    if not math.isfinite(value):
        return f"{short(value)}: not finite"
    if not math.isfinite(limit):
        return short(value)
    times = f" ({short(float(f'{value / limit:.2g}'))} x)" if 0.0 < limit < value else ""
    return f"{short(value)} against a limit of {short(limit)}{times}"


def reason(action: Record) -> str:
    """Return the sentence that a detector gave with its verdict."""
    return tidy(clean(str(_verdict(action).get("reason") or "")))


# -- for the page --------------------------------------------------------------------------------------------------------


def tell(record: Record) -> dict[str, Any]:
    """Return what the page shows: ``state``, its ``level``, ``glyph`` and ``word``, ``evidence``, ``findings`` and ``trials``, ``done``."""
    stands, actions = state(record), _actions(record)
    colour, glyph, word = STATES[stands]
    return {
        "state": stands,
        "level": colour,
        "glyph": glyph,
        "word": word,
        "result": result(record),
        "why_stopped": why_stopped(record) if stands == "stopped" else "",
        "evidence": {"measured": evidence(actions[0]), "reason": reason(actions[0])} if actions else None,
        "findings": [{"name": name, "text": text} for name, text in findings(record, trials=False)],
        "trials": [_trial(one, record) for one in dicts(record.get("trials"))],
        "done": _deeds(actions),
        "blame": [
            {**one, "gains": gains(one), "reason": tidy(str(one.get("reason") or ""))}
            for one in dicts(record.get("blame"))
        ],
    }


def _trial(one: Record, record: Record) -> dict[str, Any]:
    outcome = str(one.get("outcome"))
    return {
        "treatment": f"{tried(one, record)} at step {_whole(one.get('opened'))}",
        "name": {"kept": "kept", "taken back": "taken back"}.get(outcome, "tried"),
        "cause": cause_named(str(one.get("cause"))),
        "became": became(one, record),
        "levels": levels(one),
        "numbers": [number(one.get(key)) for key in ("before", "trouble", "after")],
    }


def _deeds(actions: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what the remedies did, each kind once, with how often and the detail of the first."""
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for outcome in (o for action in actions for o in dicts(action.get("outcomes"))):
        key = str(outcome.get("remedy")), outcome.get("applied") is not False
        deed = {"remedy": key[0], "applied": key[1], "times": 0, "detail": tidy(str(outcome.get("detail") or ""))}
        found.setdefault(key, deed)["times"] += 1
    return list(found.values())


# -- reading JSON that may be anything -----------------------------------------------------------------------------------


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, and nothing of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float:
    """Return a number that may have been written as a string; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _at_fault(record: Record) -> list[str]:
    outcomes = [o for a in _actions(record) for o in _applied(a) if o.get("remedy") == "reinitialize"]
    blamed = [str(blame.get("layer")) for blame in dicts(record.get("blame")) if blame.get("layer") != "batch"]
    return [layer or "the root module" for layer in (_texts(outcomes[-1].get("layers")) if outcomes else blamed)[:2]]


def _resigned(record: Record) -> bool:
    turns = [_decision(a).get("resign") is True for a in _actions(record) if _decision(a).get("resign") or _treats(a)]
    return turns[-1:] == [True] and not watched(record)


def _treats(action: Record) -> bool:
    """Tell whether this action makes, or would make, a treatment that is put on trial."""
    decision = _decision(action)
    names = [str(o.get("remedy")) for o in _applied(action)] if dicts(action.get("outcomes")) else _remedies(action)
    return not (decision.get("look") or decision.get("again")) and not _ON_TRIAL.isdisjoint(names)


def _actions(record: Record) -> list[dict[str, Any]]:
    return dicts(record.get("actions"))


def _decision(action: Record) -> dict[str, Any]:
    decision = action.get("decision")
    return decision if isinstance(decision, dict) else {}


def _verdict(action: Record) -> dict[str, Any]:
    verdict = action.get("verdict")
    return verdict if isinstance(verdict, dict) else {}


def _remedies(action: Record) -> list[str]:
    return _texts(_decision(action).get("remedies"))


def _applied(action: Record) -> list[dict[str, Any]]:
    return [outcome for outcome in dicts(action.get("outcomes")) if outcome.get("applied")]


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
