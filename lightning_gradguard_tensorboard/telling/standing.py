"""How an incident stands."""

from __future__ import annotations

import math

from .record import Record, actions_of, applied, decided, decision_of, dicts, integer, number, verdict_of
from .words import clean, count, plain, tidy

STATES = {
    "open": ("bad", "●", "open"),
    "stopped": ("bad", "■", "stopped the run"),
    "helped": ("good", "✓", "helped"),
    "kept": ("warning", "–", "kept"),
    "calm": ("good", "✓", "calm again"),
    "watched": ("warning", "○", "only watched"),
    "anew": ("good", "↻", "learned anew"),
    "failed": ("bad", "✕", "did not help"),
}
"""For each state the colour, a glyph, and a word or two.

``kept``: a treatment stays, but no loss shows that the run is the better for it; ``calm``: no treatment was measured;
``watched``: nothing was done, so that no more alarms say little;
``anew``: data, loss or task have changed for good, and what is healthy is learned anew.
"""
IN_VAIN = "out of the trouble, not shown to be better than before it"
"""What is said where the loss is lower than in the trouble, and nothing is left of what was learned."""
DONE_AT_ONCE = {"skip": "skipped", "clip": "clipped"}
"""What is done at once to a single step, which is no treatment, and is not put on trial."""


def state(record: Record) -> str:
    """Return a key of :data:`STATES`.

    ``helped`` only if a loss was the better for a treatment, or an older version says so.
    """
    if record.get("closed") is None:
        return "open"
    if isinstance(record.get("stopped"), int):
        return "stopped"
    last = decision_of(actions_of(record)[-1]) if actions_of(record) else {}
    if last.get("cause") == "new regime" and last.get("exhausted") is not True and not watched(record):
        return "anew"
    trials = dicts(record.get("trials"))
    if not isinstance(record.get("helped"), bool):
        if any(trial.get("outcome") == "kept" for trial in trials):
            return "kept"
        return "watched" if watched(record) else "calm"
    if record["helped"] is False:
        return "failed"
    return "helped" if not trials or any(improved(trial, record) for trial in trials) else "kept"


def improved(trial: Record, record: Record) -> bool:
    """Tell whether a treatment was kept and the loss was lower at its end.

    After gradients that were not finite it is enough that the loss is known again.
    """
    trouble, after = number(trial.get("trouble")), number(trial.get("after"))
    if trial.get("outcome") != "kept" or not math.isfinite(after):
        return False
    forms = [verdict_of(action).get("form") for action in actions_of(record)]
    return after < trouble or (math.isnan(trouble) and "non-finite" in forms)


def watched(record: Record) -> bool:
    """Tell whether nothing was done although something was decided, as in ``mode="watch"``."""
    actions = actions_of(record)
    return any(decided(action) for action in actions) and not any(dicts(a.get("outcomes")) for a in actions)


def remedies(record: Record) -> list[str]:
    """Return the names of the remedies that were applied, in order of first use."""
    return list(dict.fromkeys(str(o.get("remedy")) for action in actions_of(record) for o in applied(action)))


def halted(record: Record) -> bool:
    """Tell whether the run was ended at its first bad step, as in ``mode="halt"``."""
    actions = actions_of(record)
    last = decision_of(actions[-1]) if actions else {}
    return state(record) == "stopped" and last.get("exhausted") is True and not decided(actions[-1])


def lasted(record: Record) -> int:
    """Return the steps from an incident's first alarm to the last one that is known."""
    first = integer(record.get("step"))
    later = [integer(one.get("step")) for one in actions_of(record)]
    later += [integer(one.get("opened")) for one in dicts(record.get("trials"))]
    return max(max(later, default=first) - first, 0)


def exhausted(record: Record) -> bool:
    """Tell whether all that may be tried was tried."""
    return any(decision_of(action).get("exhausted") is True for action in actions_of(record))


def result(record: Record) -> str:
    """Return how an incident ended: ``calm again after 12 steps, helped``."""
    if record.get("closed") is None:
        return f"still open after {count(integer(record.get('alarms')), 'alarming step')}"
    after = count(max(integer(record.get("closed")) - integer(record.get("step")), 0), "step")
    made = [] if dicts(record.get("trials")) else remedies(record)
    done = [word for name, word in DONE_AT_ONCE.items() if name in made] if DONE_AT_ONCE.keys() >= set(made) else []
    aid, mended = " and ".join(done), put_back(record)
    if halted(record):
        return "the run was halted before this step was made"
    return {
        "stopped": f"the run was stopped after {after}, did not help",
        "helped": f"calm again after {after}, helped",
        "kept": f"calm again after {after}, {_kept(record)}",
        "calm": f"calm again after {after}" + (f", {mended}" if mended else f", only {aid}" if aid else ""),
        "watched": f"no more alarms after {after}, only watched",
        "anew": f"what is healthy is learned anew after {after}",
        "failed": f"given up after {after}, did not help",
    }[state(record)]


def put_back(record: Record) -> str:
    """Return ``put back teacher.0.weight`` where a skipped step put back what no optimizer trains; else nothing."""
    told = [str(one.get("detail")).partition("; put back ")[2] for a in actions_of(record) for one in applied(a)]
    names = list(dict.fromkeys(clean(name) for name in told if name))
    return f"put back {', '.join(names)}" if names else ""


def _kept(record: Record) -> str:
    """Return what is said of a treatment that stays, where nothing shows that it helped."""
    out = any(improved(trial, record) for trial in dicts(record.get("trials")))
    return IN_VAIN if out else "what was done is kept"


def why_stopped(record: Record) -> str:
    """Return why the guard ended the run: ``100 steps in a row were skipped``."""
    actions = [action for action in actions_of(record) if decision_of(action).get("exhausted") is True]
    reason = str(decision_of(actions[-1]).get("reason") or "") if actions else ""
    return tidy(plain(clean(reason)))
