"""The answers to six questions: how is it now, when did it break, where, what was done, did that help, what next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .clock import Heard, at, heard
from .pieces import Words, with_commands
from .telling import (
    IN_VAIN,
    Held,
    acts,
    advice,
    cause,
    count,
    dicts,
    improved,
    is_layer,
    level,
    named,
    number,
    only_that_step,
    outcomes,
    put_back,
    short,
    state,
    summary,
    the_rate_too,
    watched,
)


def answers(
    records: Sequence[Mapping[str, Any]],
    now: str,
    first_aid: str,
    last: Heard | None = None,
    held: Held | None = None,
) -> list[dict[str, Any]]:
    """Return the questions with their answers.

    Args:
        records: The incidents, newest first; there is one at least.
        now: How the run is.
        first_aid: The steps skipped and clipped, in words.
        last: The last that was heard of the run.
        held: How the learning rate is held below the schedule's, if it is.
    """
    newest = records[0]
    told = {
        "Now": [{"text": now}, *heard(last or Heard())],
        "When": _when(records),
        "Where": _where(newest),
        "Done": [{"text": "; ".join([first_aid] * bool(first_aid) + summary(newest)) or done_by(newest)}],
        "Did it help?": [{"text": _helped(newest)}],
        "What next?": with_commands(advice(newest, ended=last is not None and last.ended, held=held)),
    }
    return [{"question": question, "words": words} for question, words in told.items()]


def _when(records: Sequence[Mapping[str, Any]]) -> Words:
    newest, before = records[0], len(records) - 1
    earlier = f"; {count(before, 'incident')} before it" if before else ""
    told = {"text": f"step {newest['step']:,}, {newest.get('form', 'unknown')}"}
    return [told, *at(newest.get("time")), *([{"text": earlier}] if earlier else [])]


def _where(record: Mapping[str, Any]) -> Words:
    culprit, found, number = culprit_of(record), cause(record), record.get("batch")
    batch = f"batch {number:,}" if isinstance(number, int) else "the batch"
    if culprit == "machine":
        return [{"text": named(dicts(record.get("blame"))[0])}]
    if culprit == "batch":
        more = " and those after it" if isinstance(alarms := record.get("alarms"), int) and alarms > 1 else ""
        known = not found or found.startswith("the data of that step")
        return [{"text": batch + more if known else f"{batch}{more}: {found}"}]
    if culprit is not None:
        if the_rate_too(record):
            return [name_of(culprit), {"text": ", and the learning rate: it was too high"}]
        said = found and found not in (f"layer {culprit}", "could not be told")
        return [name_of(culprit), {"text": f": {found}" if said else ""}]
    if found in ("", "could not be told", "not known yet"):
        if only := only_that_step(record):
            return [{"text": only}]
        return [{"text": f"{f'the step of {batch}; ' if isinstance(number, int) else ''}no layer is blamed"}]
    return [{"text": found}]


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
        aid = _after_first_aid(record)
        return {"open": "not over at the last step seen", "failed": "no", "helped": "yes"}.get(stands, aid)
    last = trials[-1]
    before, trouble, after = (number(last.get(key)) for key in ("before", "trouble", "after"))
    numbers = f"loss {level(trouble)} → {level(after)}" + (
        f", before the trouble {short(before)}" if not math.isnan(before) else ""
    )
    were = "was" if len(trials) == 2 else "were"
    lost = f"; {count(len(trials) - 1, 'treatment')} before it {were} taken back" if trials[1:] else ""
    if math.isnan(trouble) and math.isnan(after):
        numbers = "no loss was known"
    if stands == "open":
        return f"not yet: {numbers}, taken back"
    if improved(last, record):
        return f"{'yes' if stands == 'helped' else IN_VAIN}: {numbers}{lost}"
    return f"no: {numbers}, taken back" if last.get("outcome") == "taken back" else f"not shown: {numbers}{lost}"


def culprit_of(record: Mapping[str, Any]) -> str | None:
    """Return the layer, or the batch, that is suspected first; None where nobody is."""
    blame = dicts(record.get("blame"))
    return str(blame[0].get("layer")) if blame else None


def name_of(culprit: str) -> dict[str, str]:
    """Return a suspect as a piece of a sentence: the batch is no layer, and is not shown as one."""
    return {"layer": culprit} if is_layer(culprit) else {"text": f"the {culprit}"}


def done_by(record: Mapping[str, Any]) -> str:
    """Return what remedies did."""
    return acts(record)


def _after_first_aid(record: Mapping[str, Any]) -> str:
    words, done = {"skip": "skipping", "clip": "clipping"}, [str(one.get("remedy")) for one in outcomes(record)]
    if not done or not words.keys() >= set(done):
        return f"calm again; {'what was done was not measured' if done else 'nothing was done'}"
    if mended := put_back(record):
        return f"calm again after {mended.replace('put', 'putting', 1)}"
    made = " and ".join(dict.fromkeys(words[name] for name in done))
    return f"calm again after {made} {'it' if len(done) == 1 else 'them'}; no treatment was needed"
