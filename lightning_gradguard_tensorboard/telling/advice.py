"""What to do next, in a sentence for each cause, and from where to go on."""

from __future__ import annotations

import re

from .finding import named, the_rate_too, tuned
from .held import Held, held_back
from .record import Record, actions_of, applied, decision_of, dicts, integer
from .standing import halted, state, watched
from .words import tidy

_NEXT_STEPS = {
    "layer": "find out what changed {suspect} at step {step}: code of your own that writes to it, or the machine",
    "fresh layer": "look at how {suspect} is initialised",
    "start": "choose another initialisation, or scale the inputs to a mean of 0 and a spread of 1",
    "optimizer": "look for code that writes to the optimizer's state, and at its eps and betas",
    "optimizer settings": "give the optimizer other numbers{tuned}",
    "activation": "give {suspect} a bound, as a log, a root, an exponential, a power or a division needs one, or list "
    "`SwapActivation()` among the remedies, which swaps it",
    "loss": "look at the loss function: a log, a root or a division in it needs a bound",
    "stale gradients": "call `zero_grad()` before each backward pass: no update clears the gradients by itself",
    "machine": "take {suspect} out of the run, or test it; replay the bundle on another one",
    "new regime": "if data, loss or task were not meant to change, look at the data from {batch} on",
    "unknown": "look at {batch}, and at what changed in the code or the data shortly before",
}
_SNAPSHOT = re.compile(r"snapshot of step (\d+)|went back to step (\d+)")


def advice(record: Record, *, ended: bool = False, held: Held | None = None) -> str:
    """Return what to do next, as ``nothing for this run; next time choose ...``, commands between backticks.

    Args:
        record: The newest incident.
        ended: Whether the run has ended, so that there is nothing to wait for.
        held: How the learning rate is held below the schedule's, if it is.
    """
    told, stands = _for_cause(record), state(record)
    if halted(record) or stands == "stopped":
        return f"{told}; then {_go_on(record)}"
    if stands == "open" and ended:
        return f"{told}; the run ended before this was over: {_go_on(record)}"
    if stands == "open":
        return f"wait: the guard is at it; meanwhile {told}"
    if stands == "failed":
        return f"{told}; or {_go_on(record)}"
    if watched(record):
        blind = (
            "" if dicts(record.get("blame")) else "no copies are kept to compare layers with, so no layer is blamed: "
        )
        return f'{blind}{told}; without mode="watch" the guard would have acted'
    if held is not None:
        return f"{held_back(held)}; {told}"
    if stands == "calm" and _cause(record) in ("", "unknown", "batch"):
        return f"nothing; if it comes again, look at {_batch(record)}"
    return f"nothing for this run; {told}"


def last_good(record: Record) -> int | None:
    """Return the newest step whose weights are known to be good, or None where nothing tells."""
    steps = []
    for action in actions_of(record):
        for outcome in applied(action):
            if isinstance(back := outcome.get("back_to"), int):
                steps.append(back)
            elif found := _SNAPSHOT.search(str(outcome.get("detail"))):
                steps.append(int(found[1] or found[2]))
    if steps:
        return steps[-1]
    done = {str(outcome.get("remedy")) for action in actions_of(record) for outcome in applied(action)}
    skipped = done == {"skip"} and all(map(applied, actions_of(record)))
    # Where no step was made since, the weights are still those of the step before.
    return max(integer(record.get("step")) - 1, 0) if skipped or halted(record) else None


def _go_on(record: Record) -> str:
    good = last_good(record)
    known = "" if good is None else tidy(f" of step {good} or before")
    return f"go on from a checkpoint{known} (`lightning-gradguard checkpoints RUN_DIR` tells which are healthy)"


def _cause(record: Record) -> str:
    """Return the cause of what was kept, or else the last one that was named."""
    kept = [str(one.get("cause")) for one in dicts(record.get("trials")) if one.get("outcome") == "kept"]
    told = [str(cause) for action in actions_of(record) if (cause := decision_of(action).get("cause"))]
    known = [one for one in (kept or told) if one != "unknown"]
    return (known or told or [""])[-1]


def _for_cause(record: Record) -> str:
    cause, blame = _cause(record), dicts(record.get("blame"))
    if cause == "batch":
        on = " and those after it" if integer(record.get("alarms")) > 1 else ""
        suspect = named(blame[0]) if blame and blame[0].get("samples") else ""
        what = f"{_batch(record)}{suspect.removeprefix('the batch')}{on}"
        return f"look at {what}; `GradGuard(skip_batches=RUN_DIR)` leaves {'them' if on else 'it'} out"
    if cause == "learning rate":
        return _lower(record)
    suspect = named(blame[0]) if blame else "the layers"
    if cause == "layer" and record.get("form") == "cold-start":
        cause = "fresh layer"
    told = _NEXT_STEPS.get(cause, _NEXT_STEPS["unknown"])
    step, numbers = f"{integer(record.get('step')):,}", tuned(record)
    told = told.format(batch=_batch(record), suspect=suspect, step=step, tuned=numbers and f": {numbers}")
    return f"{told}; and {_lower(record)}" if the_rate_too(record) else told


def _lower(record: Record) -> str:
    details = [str(outcome.get("detail")) for action in actions_of(record) for outcome in applied(action)]
    known = [found[1] for told in details if (found := re.search(r"after ([\d.e+-]+) had lost", told))]
    rate = f"a learning rate well below {known[-1]}" if known else "a lower learning rate"
    return tidy(f"next time choose {rate}, or a longer warm-up")


def _batch(record: Record) -> str:
    batch = record.get("batch")
    return f"batch {batch:,}" if isinstance(batch, int) else "the batch of that step"
