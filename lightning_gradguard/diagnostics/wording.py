"""Sentences for a person, shared by the console, TensorBoard's text and the report."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from lightning_gradguard.records import Action, Incident, Suspect, TrialRecord, Verdict

State = Literal["open", "helped", "kept", "calm", "anew", "failed"]
"""How an incident stands. ``kept``: a treatment stays, but no loss shows that it made anything better; ``calm``: no treatment was measured;
``anew``: data, loss or task have changed for good, and what is healthy is learned anew."""

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
_NO_LAYERS = frozenset({"learning rate", "start", "new regime"})
"""Causes of which every layer is a victim, so that the one that shows most is not the first."""
_ON_TRIAL = frozenset({"backoff", "rollback", "reinitialize", "initialize", "limit_norm"})


def clean(text: str) -> str:
    """Return text fit for one line of a terminal: control characters (escape sequences, newlines) made visible.

    >>> clean("conv\\x1b[31m1")
    'conv\\ufffd[31m1'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no table cell, no HTML.

    >>> markdown("a|b_<i>")
    'a\\\\|b\\\\_&lt;i&gt;'
    """
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(clean(text), quote=False))


def number(value: float) -> str:
    """Return a measured value in few characters: ``57``, ``0.013``, ``1.5e+10``, ``inf``."""
    if not math.isfinite(value):
        return repr(float(value))
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def count(amount: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``, ``1,900 steps``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def gains(blame: Suspect) -> str:
    """Return what was measured of a suspect, such as ``forward gain 57 x``; empty where nothing was."""
    measured = (
        ("forward gain", blame.forward_gain),
        ("backward gain", blame.backward_gain),
        ("weights", blame.weight_ratio),
    )
    return ", ".join(f"{name} {number(value)} x" for name, value in measured if value is not None)


def suspect(incident: Incident) -> str:
    """Return ``first in conv4 (forward gain 57 x)``, or an empty string where nobody is blamed, or more than single layers is at fault."""
    if not incident.blame:
        return ""
    first = incident.blame[0]
    told = [action.decision.cause for action in incident.actions]
    if first.layer != "batch" and told and told[-1] in _NO_LAYERS:
        return ""
    name = "the batch" if first.layer == "batch" else f"first in {clean(first.layer) or 'the root module'}"
    evidence = gains(first)
    return f"{name} ({evidence})" if evidence else name


def done(remedies: tuple[str, ...]) -> str:
    """Return what was done, in words: ``skipped the step, lowered the learning rate``."""
    return ", ".join(_DONE.get(name, f"applied {clean(name)}") for name in remedies) or "nothing was changed"


def result(incident: Incident) -> str:
    """Return how an incident ended: ``calm again after 12 steps, helped``."""
    if incident.closed is None:
        return f"still open after {count(incident.alarms, 'alarming step')}"
    after = count(max(incident.closed - incident.step, 0), "step")
    calm = "only watched" if watched(incident) else "first aid only" if _first_aid_only(incident) else ""
    return {
        "helped": f"calm again after {after}, helped",
        "kept": f"calm again after {after}, what was done is kept",
        "calm": f"calm again after {after}" + (f", {calm}" if calm else ""),
        "anew": f"what is healthy is learned anew after {after}",
        "failed": f"given up after {after}, did not help",
    }[state(incident)]


def state(incident: Incident) -> State:
    """Return how an incident stands; ``helped`` only if a loss was the better for a treatment, or an older version says so."""
    if incident.closed is None:
        return "open"
    last = incident.actions[-1].decision if incident.actions else None
    if last is not None and last.cause == "new regime" and not last.exhausted and not watched(incident):
        return "anew"
    if incident.helped is None:
        return "calm"
    if not incident.helped:
        return "failed"
    return "helped" if not incident.trials or any(improved(t, incident) for t in incident.trials) else "kept"


def improved(trial: TrialRecord, incident: Incident) -> bool:
    """Tell whether a treatment was kept and the loss was lower at its end, or, after gradients that were not finite, is known again."""
    if trial.outcome != "kept" or not math.isfinite(trial.after):
        return False
    lost = math.isnan(trial.trouble) and any(action.verdict.form == "non-finite" for action in incident.actions)
    return lost or trial.after < trial.trouble


def watched(incident: Incident) -> bool:
    """Tell whether nothing was done although something was decided, as in ``mode="watch"``."""
    decided = any(action.decision.remedies for action in incident.actions)
    return decided and not any(action.outcomes for action in incident.actions)


def _first_aid_only(incident: Incident) -> bool:
    return not incident.trials and bool(incident.remedies) and _FIRST_AID.issuperset(incident.remedies)


def _treats(action: Action) -> bool:
    """Tell whether this action makes, or would make, a treatment that is put on trial."""
    names = [o.remedy for o in action.outcomes if o.applied] if action.outcomes else action.decision.remedies
    return not (action.decision.look or action.decision.again) and not _ON_TRIAL.isdisjoint(names)


def cause(incident: Incident) -> str:
    """Return what was found to be at fault: by the treatment that was kept, else the newest one, else by first aid; empty if unsaid."""
    kept = [trial.cause for trial in incident.trials if trial.outcome == "kept"]
    treated = [action.decision.cause for action in incident.actions if _treats(action)]
    told = [action.decision.cause for action in incident.actions if action.decision.cause]
    named = [name for name in told if name != "unknown"]
    if state(incident) == "anew":
        found = told[-1]
    elif watched(incident):
        # Where nothing is done the trouble spreads, and only the first finding is of what began it.
        found = (named or told or [""])[0]
    else:
        tried = [trial.cause for trial in incident.trials]
        found = (kept or treated or tried or named or told or [""])[-1]
    layers = [clean(layer) for layer in _at_fault(incident)] if found == "layer" else []
    return f"{'layer' if len(layers) == 1 else 'layers'} {' and '.join(layers)}" if layers else cause_named(found)


def cause_named(name: str) -> str:
    """Return a cause in words, one that this version does not know as it is."""
    return _CAUSES.get(name, clean(name))


def _at_fault(incident: Incident) -> tuple[str, ...]:
    """Return the layers whose weights were changed, else those that are blamed, as far as they are few."""
    outcomes = [o for action in incident.actions for o in action.outcomes if o.applied and o.remedy == "reinitialize"]
    blamed = tuple(blame.layer for blame in incident.blame if blame.layer != "batch")
    return tuple(layer or "the root module" for layer in (outcomes[-1].layers if outcomes else blamed)[:2])


def trial(record: TrialRecord, incident: Incident) -> str:
    """Return what was tried, what became of it and why: ``re-initialised the layer at step 40: taken back at step 104, ...``."""
    return f"{treatment(record.treatment)} at step {record.opened:,}: {became(record, incident)} ({levels(record)})"


def treatment(names: tuple[str, ...]) -> str:
    """Return what was done as one: ``rolled back to a good snapshot and lowered the learning rate``."""
    first, last = ", ".join(done((name,)) for name in names[:-1]), done(names[-1:])
    return f"{first} and {last}" if first else last


def became(record: TrialRecord, incident: Incident) -> str:
    """Return what became of a treatment, and why: ``taken back at step 104, the loss was no better than in the trouble``."""
    if record.outcome == "calm":
        return f"left as it is at step {record.closed:,}, no loss was known to measure it by"
    why = _why(record, [action.verdict for action in incident.actions if action.step == record.closed])
    return f"{clean(record.outcome)} at step {record.closed:,}" + (f", {why}" if why else "")


def _why(record: TrialRecord, alarms: Sequence[Verdict]) -> str:
    if record.outcome == "kept":
        if record.after < record.trouble:
            return "the loss is lower than in the trouble"
        return "the loss is no higher than before the trouble" if record.after <= record.before else ""
    if record.outcome != "taken back":
        return ""
    if alarms and not (alarms[-1].detector == "trial" and alarms[-1].examine):
        return f"there was trouble again ({clean(alarms[-1].form)})"
    if math.isnan(record.after):
        return "no finite loss was seen after it"
    if record.after >= record.trouble:
        return "the loss was no better than in the trouble"
    if record.after > record.before:
        return "the loss was not back where it had been"
    return "the loss did not prove a cure"


def levels(record: TrialRecord) -> str:
    """Return the levels of the loss: ``loss before the trouble 0.04, in it 6.1, at the end 6``."""
    known = (record.before, record.trouble, record.after)
    if all(map(math.isnan, known)):
        return "no loss was known"
    before, trouble, after = map(level, known)
    return f"loss before the trouble {before}, in it {trouble}, at the end {after}"


def level(value: float) -> str:
    """Return the level of a loss."""
    return "NaN or unknown" if math.isnan(value) else number(value)


def on_trial(incident: Incident) -> str:
    """Return the treatment that is still on trial in an open incident, such as ``rolled back ... since step 40``; else nothing."""
    treating = [action for action in incident.actions if _treats(action) and action.outcomes]
    if incident.closed is not None or not treating or resigned(incident):
        return ""
    last = treating[-1]
    if any(record.opened == last.step for record in incident.trials):
        return ""
    names = tuple(o.remedy for o in last.outcomes if o.applied and o.remedy in _ON_TRIAL)
    return f"{treatment(names)} at step {last.step:,}"


def would_have(incident: Incident) -> str:
    """Return what would have been done where nothing was: ``would have skipped the step, then ...``; else nothing."""
    if not watched(incident):
        return ""
    first_aid = [n for a in incident.actions if not _treats(a) for n in a.decision.remedies if n in _FIRST_AID]
    treatments = (tuple(n for n in a.decision.remedies if n not in _FIRST_AID) for a in incident.actions if _treats(a))
    steps = [done((name,)) for name in dict.fromkeys(first_aid)] + [treatment(t) for t in dict.fromkeys(treatments)]
    if any(action.decision.cause == "new regime" for action in incident.actions):
        steps.append("learned anew what is healthy")
    return f"would have {'; then '.join(steps)}" if steps else ""


def undone(action: Action) -> str:
    """Return what is said of an action whose decision changed nothing: what it would have done, and why."""
    names, reason = action.decision.remedies, clean(action.decision.reason)
    if not names:
        return reason
    return f"would have {treatment(names)}" + (f": {reason}" if reason else "")


def resigned(incident: Incident) -> bool:
    """Tell whether no treatment was left, and none has been found since."""
    turns = [action.decision.resign for action in incident.actions if action.decision.resign or _treats(action)]
    return turns[-1:] == [True] and not watched(incident)


def left(incident: Incident) -> str:
    """Return what is left when no treatment is, or the budget is spent; else nothing."""
    stands = state(incident)
    if stands == "failed" and incident.actions and incident.actions[-1].decision.exhausted:
        return "nothing: the budget is spent"
    gone = resigned(incident) and stands in ("open", "failed", "calm")
    return "first aid only: the run goes on as you wrote it" if gone else ""


def findings(incident: Incident, *, trials: bool = True) -> Iterable[tuple[str, str]]:
    """Yield what is known of cause and treatment, in the order in which it is told: ``("cause", "the learning rate")``, ...

    Args:
        incident: The incident.
        trials: Whether to tell of the treatments one by one, which a table tells better.
    """
    if found := cause(incident):
        unproven = incident.trials and state(incident) == "failed"
        yield ("suspected cause" if unproven else "cause"), found
    for record in incident.trials if trials else ():
        yield "tried", trial(record, incident)
    if pending := on_trial(incident):
        yield "on trial", pending
    outcomes = [o for action in incident.actions for o in action.outcomes if o.applied]
    if measured := [a.verdict.reason for a in incident.actions if a.verdict.detector == "initialize"]:
        yield "measured", clean(measured[-1])
    rates = [clean(o.detail).removeprefix("learning rate ") for o in outcomes if o.remedy == "backoff"]
    if rates and not left(incident):
        yield "learning rate", rates[-1]
    if would := would_have(incident):
        yield "only watched", would
    if state(incident) == "anew":
        yield "new regime", "what is healthy is learned anew from here on"
    if remains := left(incident):
        yield "left", remains


def opening(incident: Incident) -> str:
    """Return the sentence that opens an incident: when, which form, where."""
    where = suspect(incident)
    return f"incident {incident.number:,} at step {incident.step:,}: {incident.form}" + (f", {where}" if where else "")
