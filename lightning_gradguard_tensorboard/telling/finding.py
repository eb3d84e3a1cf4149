"""What was found: evidence, suspect and cause."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from .held import lowered_to
from .record import Record, actions_of, applied, decision_of, dicts, integer, number, texts, verdict_of
from .standing import state, watched, why_stopped
from .trials import left, on_trial, resigned, treats, trial, would_have
from .witness import witnessed
from .words import SPENT, cause_named, clean, gains, plain, short, tidy

_RATE = "learning rate "
_NO_LAYERS = frozenset({"learning rate", "start", "stale gradients", "optimizer settings", "new regime"})
"""Causes of which every layer is a victim, so that the one that shows most is not the first."""

_QUANTITIES = {
    **dict.fromkeys(("spike", "drift", "vanishing", "non-finite", "check-up"), "norm "),
    **dict.fromkeys(("overshoot", "loss-leap", "trial"), "loss "),
}
"""What a detector measures; one that measures several things, or another package's, says it in its reason."""
_FEW_SAMPLES = 8
_NO_LAYER = ("batch", "loss function", "machine", "optimizer")
"""Suspects that are no layer."""
_SAID_BY_THE_EVIDENCE = re.compile(r"^(?:norm|loss) (?:[\d.,]+(?:e[+-]?\d+)?) ?(?:is |, )")


def is_layer(name: str) -> bool:
    """Tell whether a suspect is a layer; the batch, the loss function, a machine and the optimizer are none."""
    return name not in _NO_LAYER


def named(blame: Record) -> str:
    """Return a suspect as a person calls it: ``conv4``, ``net.3 Exp``, ``the batch of rank 1, sample 5``."""
    layer = str(blame.get("layer", "?"))
    if layer == "batch":
        return _the_batch(blame)
    kind = clean(str(blame.get("kind") or ""))
    if is_layer(layer):
        return f"{clean(layer)} {kind}" if kind else clean(layer) or "the root module"
    return f"{kind} of the {layer}" if kind else f"the {layer}{_of_rank(blame)}"


def suspect(record: Record) -> str:
    """Return ``first in conv4 (forward gain 57 x)``; nothing where nobody is blamed, or no single layer is at fault."""
    blame = dicts(record.get("blame"))
    if not blame:
        return ""
    layer = str(blame[0].get("layer", "?"))
    told = [decision_of(action).get("cause") for action in actions_of(record)]
    if is_layer(layer) and told and told[-1] in _NO_LAYERS:
        return ""
    name = f"first in {named(blame[0])}" if is_layer(layer) else named(blame[0])
    evidence = "not finite" if blame[0].get("broken") else gains(blame[0])
    return f"{name} ({evidence})" if evidence else name


def _of_rank(blame: Record) -> str:
    rank = blame.get("rank")
    return f" of rank {rank}" if isinstance(rank, int) else ""


def _the_batch(blame: Record) -> str:
    """Return ``the batch of rank 1, sample 5``."""
    samples, of = [i for i in blame.get("samples") or () if isinstance(i, int)], _of_rank(blame)
    listed = ", ".join(map(str, samples[:_FEW_SAMPLES])) + (", …" if len(samples) > _FEW_SAMPLES else "")
    return f"the batch{of}" + (f", {'sample' if len(samples) == 1 else 'samples'} {listed}" if samples else "")


def opening(record: Record) -> str:
    """Return the sentence that opens an incident: when, which form, where."""
    where = suspect(record)
    told = f"incident {integer(record.get('number')):,} at step {integer(record.get('step')):,}: {record.get('form')}"
    return told + (f", {where}" if where else "")


def findings(record: Record, *, trials: bool = True) -> Iterable[tuple[str, str]]:
    """Yield what is known of cause and treatment, as it is told: ``("cause", "the learning rate")``, and so on.

    Args:
        record: The incident.
        trials: Whether to tell of the treatments one by one, which a table tells better.
    """
    stands, tried = state(record), dicts(record.get("trials"))
    if found := cause(record) or only_that_step(record):
        yield ("suspected cause" if tried and stands == "failed" else "cause"), found
    yield from (("witness", told) for told in witnessed(record))
    for one in tried if trials else ():
        yield "tried", trial(one, record)
    if pending := on_trial(record):
        yield "on trial", pending
    actions = actions_of(record)
    measured = [v.get("reason") for action in actions if (v := verdict_of(action)).get("detector") == "initialize"]
    if measured:
        yield "measured", tidy(clean(str(measured[-1])))
    done = [one for action in actions for one in dicts(action.get("outcomes")) if one.get("applied") is True]
    rates = [plain(str(one.get("detail"))) for one in done if one.get("remedy") == "backoff"]
    if (
        rates
        and rates[-1].startswith(_RATE)
        and stands not in ("anew", "stopped")
        and not (left(record) or resigned(record))
    ):
        to, _, why = tidy(clean(rates[-1].removeprefix(_RATE))).partition(", ")
        since = "".join(f" from step {step:,}" for step, _ in lowered_to(record)[-1:])
        climbs = " while the loss falls" if "climb" in why else "; it climbs while the loss falls"
        yield "learning rate", f"{to}{since}{why and f', {why}'}{climbs}"
    if numbers := tuned(record):
        back = any(one.get("outcome") == "taken back" and "tune" in texts(one.get("treatment")) for one in tried)
        yield "optimizer", f"{numbers}{', which was put back' if back else ''}"
    if would := would_have(record):
        yield "only watched", would
    if stands == "anew":
        yield "new regime", "what is healthy is learned anew from here on"
    if stands == "stopped":
        yield "stopped", f"at step {integer(record.get('stopped')):,}: {why_stopped(record) or SPENT}"
    if remains := left(record):
        yield "left to try", remains
    if isinstance(kept := record.get("bundle"), str) and kept:
        yield "evidence", clean(kept)


def tuned(record: Record) -> str:
    """Return what the optimizer's numbers were brought to, as ``eps 1e-8 -> 2.44e-4``; empty where none was."""
    done = [one for action in actions_of(record) for one in applied(action) if one.get("remedy") == "tune"]
    return clean(str(done[-1].get("detail"))) if done else ""


def cause(record: Record) -> str:
    """Return what was found to be at fault, empty if nobody looked.

    It is what the treatment that was kept was for, else the newest one, else what first aid was for.
    """
    actions, trials = actions_of(record), dicts(record.get("trials"))
    told = [str(cause) for action in actions if (cause := decision_of(action).get("cause"))]
    named = [name for name in told if name != "unknown"]
    if state(record) == "anew":
        found = told[-1]
    elif watched(record):
        # Where nothing is done the trouble spreads, and only the first finding is of what began it.
        found = (named or told or [""])[0]
    else:
        kept = [str(one.get("cause")) for one in trials if one.get("outcome") == "kept"]
        treated = [str(decision_of(action).get("cause") or "") for action in actions if treats(action)]
        tried = [str(one.get("cause")) for one in trials]
        found = (kept or treated or tried or named or told or [""])[-1]
        if found == "unknown" and state(record) == "open":
            return "not known yet"
        if found == "unknown" and state(record) in ("calm", "watched") and not trials:
            return ""  # The trouble went by with first aid, and nobody looked for its cause.
    layers = [clean(layer) for layer in _at_fault(record)] if found == "layer" else []
    word = "" if "the root module" in layers else "layer " if len(layers) == 1 else "layers "
    words = f"{word}{' and '.join(layers)}" if layers else cause_named(found)
    if found == "batch" and integer(record.get("alarms")) > 1:
        return f"{words} and of those after it"
    return f"{words}, and the learning rate: it was too high" if the_rate_too(record) else words


def the_rate_too(record: Record) -> bool:
    """Tell whether treatments for another cause were taken back until the learning rate was lowered as well."""
    trials = dicts(record.get("trials"))
    kept = next((one for one in trials if one.get("outcome") == "kept"), None)
    if kept is None or kept.get("cause") in _NO_LAYERS:
        return False
    before = trials[: trials.index(kept)]
    lowered = ["backoff" in texts(one.get("treatment")) for one in (*before, kept)]
    return bool(before) and lowered[-1] and not any(lowered[:-1])


def aim(one: Record, record: Record) -> str:
    """Return what a treatment was for: ``a bad layer, conv4``."""
    told, outcomes = (
        str(one.get("cause")),
        [o for a in actions_of(record) if a.get("step") == one.get("opened") for o in applied(a)],
    )
    layers = [layer for o in outcomes if o.get("remedy") == "reinitialize" for layer in texts(o.get("layers"))]
    layers = layers or [str(b.get("layer")) for b in dicts(record.get("blame")) if is_layer(str(b.get("layer")))][:1]
    names = [clean(layer) or "the root module" for layer in layers[:2]] if told == "layer" else []
    return f"{cause_named(told)}{', ' if names else ''}{' and '.join(names)}"


def only_that_step(record: Record) -> str:
    """Return what was bad where first aid was enough, and why no layer is blamed if none is; else nothing.

    ``only step 500 (batch 500) was bad; no layer is blamed, since skipping it was enough``
    """
    if not (first_aid := _enough(record)):
        return ""
    batch, alarms = record.get("batch"), integer(record.get("alarms"))
    step = f"step {integer(record.get('step')):,}" + (f" (batch {batch:,})" if isinstance(batch, int) else "")
    bad = f"only {step} was bad" if alarms <= 1 else f"only {alarms:,} steps were bad, first {step}"
    return f"{bad}; {first_aid}" if dicts(record.get("blame")) else f"{bad}; no layer is blamed, since {first_aid}"


def _enough(record: Record) -> str:
    """Return what was enough where nobody looked for a cause: ``skipping it was enough``; else nothing."""
    told = {str(cause) for action in actions_of(record) if (cause := decision_of(action).get("cause"))}
    done = [one.get("remedy") for action in actions_of(record) for one in applied(action)]
    if state(record) != "calm" or dicts(record.get("trials")) or told != {"unknown"} or not done:
        return ""
    it = "it" if integer(record.get("alarms")) <= 1 else "them"
    words = {"skip": f"skipping {it} was enough", "clip": f"clipping {it} was enough"}.get(str(done[-1]), "")
    return words if set(done) <= {"skip", "clip"} else ""


def _at_fault(record: Record) -> list[str]:
    outcomes = [o for a in actions_of(record) for o in applied(a) if o.get("remedy") == "reinitialize"]
    blamed = [str(b.get("layer")) for b in dicts(record.get("blame")) if is_layer(str(b.get("layer")))]
    return [layer or "the root module" for layer in (texts(outcomes[-1].get("layers")) if outcomes else blamed)[:2]]


def evidence(action: Record) -> str:
    """Return what was measured, and what it was compared with: ``norm 310, 84 x the limit of 3.7``."""
    verdict = verdict_of(action)
    measured = _measured(verdict)
    value, limit = number(verdict.get("value")), number(verdict.get("limit"))
    if not math.isfinite(value):
        return f"{measured}{short(value)}: not finite"
    if not math.isfinite(limit):
        return f"{measured}{short(value)}"
    if not 0.0 < limit < value:
        return f"{measured}{short(value)} against a limit of {short(limit)}"
    times = float(f"{value / limit:.2g}")
    if times <= 1.0:
        return f"{measured}{short(value)}, just above the limit of {short(limit)}"
    return f"{measured}{short(value)}, {short(times)} x the limit of {short(limit)}"


def quantity(action: Record) -> str:
    """Return what was measured: ``norm``, ``loss``, or nothing where the detector's reason says it."""
    return _measured(verdict_of(action)).strip()


def _measured(verdict: Record) -> str:
    """Return what a verdict's value is, and a space: of a run that diverges by its norm and its loss, the loss."""
    detector = str(verdict.get("detector"))
    return "loss " if detector == "drift" and verdict.get("form") == "divergence" else _QUANTITIES.get(detector, "")


def reason(action: Record) -> str:
    """Return the sentence that a detector gave with its verdict, but for the value that the evidence tells."""
    told = clean(str(verdict_of(action).get("reason") or ""))
    return tidy(_SAID_BY_THE_EVIDENCE.sub("", told) if quantity(action) else told)
