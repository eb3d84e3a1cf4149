"""The sentence that says how a run is.

Longer than 200 lines: all verdicts there are stand in one place, so that no two are told alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import lowered
from .answers import answers, culprit_of, done_by, name_of
from .clock import Heard
from .events import Event, incidents, notices, read_event
from .pieces import Words, located, plain_text
from .series import COUNTS, Timeline
from .telling import (
    SPENT,
    Held,
    clean,
    count,
    dicts,
    exhausted,
    is_layer,
    lasted,
    left,
    outcomes,
    short,
    state,
    watched,
    why_stopped,
)
from .telling.record import integer

Level = Literal["good", "warning", "bad"]

_HEADLINES = {
    "anew": ("Learning anew", "Learned anew"),
    "helped": ("Recovering", "Recovered"),
    "calm": ("Treated", "Calm again"),
}
"""What a run is called, amber, until it is settled, and then, green."""
SETTLED = 500
"""Steps without trouble after which what is over is no cause for amber any more."""


def parse_event(tick: int, wall_time: float, optimizer: int, tensor: Any) -> Event | None:
    """Read one event, or return None if it is not what it should be, or cannot be told."""
    event = read_event(tick, wall_time, optimizer, tensor)
    try:
        # Whoever wrote it, what cannot be told must not take the others with it.
        verdict(incidents([event] if event else [], {}), None)
        notices([event] if event else [])
    except Exception:
        return None
    return event


def verdict(
    records: list[dict[str, Any]],
    end: tuple[float, int] | None,
    restless_since: int | None = None,
    counts: Mapping[str, int] | None = None,
    last: Heard | None = None,
    held: Held | None = None,
) -> dict[str, Any]:
    """Say in one sentence whether the run is healthy, when it broke, which layer was first, and what was done.

    Args:
        records: The incidents, newest first.
        end: Place and step that the run has reached, or None where no window has been.
        restless_since: First step of a stretch outside the band that has not ended, told of by an incident or not.
        counts: Steps ``clipped``, ``skipped`` and left to a GradScaler (``overflows``), as the windows count them.
        last: The last that was heard of the run.
        held: How the rate is held below the schedule's, if it is.

    Returns:
        ``level`` (green, amber or red), ``headline`` (one or two words), ``words``, and ``answers`` to the six
        questions.

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
    skipped, clipped = max(counts.get("skipped", 0), _held(records)), counts.get("clipped", 0)
    done = [f"{count(skipped, 'step')} skipped"] if skipped else []
    done += [f"{count(clipped, 'step')} clipped"] if clipped else []
    calm = end[0] - 1 - newest["place"] - lasted(newest) if end else 0.0

    def answered(now: str) -> list[dict[str, Any]]:
        return answers(records, now, ", ".join(done), last, held)

    if (stopped := _stopped(newest, end)) is not None:
        why, culprit = why_stopped(newest) or SPENT, culprit_of(newest)
        first: Words = [{"text": "it began"}] if culprit is None else [{"text": "first "}, name_of(culprit)]
        words = [{"text": f"{why}; "}, *first, {"text": f" at step {newest['step']:,}."}]
        done[:1] = _one_more(done[:1], why, skipped, stopped)
        headline = f"Stopped by GradGuard at step {stopped:,}:"
        return _verdict("bad", headline, words, answered(f"stopped at step {stopped:,}: {why}"))

    words = [
        {"text": f"{count(len(records), 'incident')} in {steps}; the last: {newest.get('form', 'unknown')}"},
        {"text": f" at step {newest['step']:,}"},
    ]
    if culprit := culprit_of(newest):
        words += [{"text": ", first in " if is_layer(culprit) else ", "}, name_of(culprit)]
    words.append({"text": f"; {', '.join(done) or done_by(newest)}"})

    if state(newest) in ("failed", "stopped") or any(exhausted(record) for record in records):
        told = "; what was done did not help." if outcomes(newest) else "; the run went on."
        if dicts(newest.get("trials")) and state(newest) == "failed":
            remains = left(newest)
            told = "; nothing that was tried helped, and it was taken back" + (
                f"; left to try: {remains}." if remains else "."
            )
        return _verdict("bad", "Not healed", [*words, {"text": told}], answered(left(newest) or "not healed"))
    if newest.get("closed") is None:
        seen = f"at step {end[1]:,}, the last seen" if end else "when this was written"
        words.append({"text": f"; still open {seen}."})
        return _verdict("bad", "In trouble", words, answered(f"in trouble {seen}"))
    if restless_since is not None:
        return _verdict("bad", "Out of its band", [*words, {"text": f"; {restless}."}], answered(restless))
    states = {state(record) for record in records}
    if state(newest) == "anew":
        words.append({"text": "; data, loss or task have changed for good, and what is healthy was learned anew"})
    only_watched = all(map(watched, records))
    if only_watched:
        words.append({"text": "; nothing was changed, only watched"})
    # A run that has ended recovers no more: what was over by then is settled, if something shows that it is.
    ended = last is not None and last.ended
    over = ended and state(newest) in ("helped", "calm", "anew")
    settled = calm >= SETTLED or states == {"calm"} or over
    alarm = f"step {integer(newest.get('step')) + lasted(newest):,}"
    now = f"no alarm for {count(int(calm), 'step')} since {alarm}" if calm >= 1 else f"no alarm since {alarm}"
    # One word has one colour: what is amber is called otherwise than what is green.
    slow = held is not None and held.slow
    since = "" if settled or ended or only_watched or slow else f"; green after {SETTLED}"
    words.append({"text": f"; {now}{since}."})
    if only_watched:
        return _verdict("warning", "No more alarms", words, answered(now))
    if slow:
        # Calm, and yet not what was asked for: whether it learns at such a rate nobody has seen.
        words.append({"text": " The learning rate is held so low that it may learn slowly."})
        return _verdict("warning", "Treated", words, answered(now))
    amber, green = _HEADLINES["anew" if state(newest) == "anew" else "helped" if "helped" in states else "calm"]
    if settled:
        return _verdict("good", green, words, answered(now))
    if ended:
        words.append({"text": " The run has ended, and no loss shows that what was done made it better."})
        amber = "Treated"
    return _verdict("warning", amber, words, answered(now))


def sentence(said: Mapping[str, Any]) -> str:
    """Return a verdict as one line of text: ``Recovered. 1 incident in 2,400 steps; ...``."""
    words = clean(plain_text(said["words"]))
    return f"{said['headline']}{'' if said['headline'].endswith(':') else '.'} {words}"


def amend(said: dict[str, Any], unusual: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a verdict that also tells of layers that have left their level for good.

    A run is not called healthy over them.

    Args:
        said: The verdict.
        unusual: The layers: ``layer``, ``step`` and ``factor``, the largest leap first.
    """
    if not unusual:
        return said
    since = f"{count(len(unusual), 'layer')} unusual since step {min(int(one['step']) for one in unusual):,}"
    told: Words = [{"text": f" {since}: " if said["answers"] or said["level"] != "good" else ""}]
    for index, one in enumerate(unusual[:3]):
        times, size = (one["factor"], "larger") if one["factor"] >= 1.0 else (1.0 / one["factor"], "smaller")
        told += [{"text": ", " if index else ""}, {"layer": str(one["layer"])}]
        told.append({"text": f" has a gradient {short(times)} times {size} than before"})
    told.append({"text": f" and {len(unusual) - 3:,} more." if unusual[3:] else "."})
    if said["level"] != "good":
        return {**said, "words": [*said["words"], *told]}
    if said["answers"]:
        return {**said, "level": "warning", "words": [*said["words"], *told]}
    return {**said, "level": "warning", "headline": f"{since}:", "words": [*told, {"text": " "}, *said["words"]]}


def of_run(
    records: list[dict[str, Any]],
    timelines: Sequence[Timeline],
    unusual: Sequence[Mapping[str, Any]],
    last: Heard | None = None,
    run_dir: str | None = None,
) -> dict[str, Any]:
    """Return the verdict on a run.

    Args:
        records: Its incidents, newest first.
        timelines: The windows of each of its optimizers.
        unusual: Layers that have left their level for good, as :func:`amend` takes them.
        last: The last that was heard of it.
        run_dir: Its directory, which commands are told with, if it is known.
    """
    ends = [(float(one.axis.last[-1]), int(one.table[-1, 0])) for one in timelines if len(one.table)]
    restless = [since for one in timelines if (since := one.restless_since) is not None]
    counts = {name: sum(one.total(name) for one in timelines) for name in COUNTS}
    low = [found for one in timelines if (found := lowered.held(one, records)) is not None]
    held = min(low, key=lambda one: one.factor, default=None)
    end, since = max(ends, default=None), min(restless, default=None)
    return located(amend(verdict(records, end, since, counts, last, held), unusual), run_dir)


def _verdict(level: Level, headline: str, words: Words, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"level": level, "headline": headline, "words": words, "answers": answers}


def _stopped(newest: Mapping[str, Any], end: tuple[float, int] | None) -> int | None:
    """Return the step at which the guard ended the run, or None where it went on, as a resumed one does."""
    if state(newest) != "stopped":
        return None
    stopped = int(newest["stopped"])
    return stopped if end is None or end[0] - 1 <= (newest.get("ended") or stopped) + 1 else None


def _one_more(skipped: list[str], why: str, held: int, stopped: int) -> list[str]:
    """Tell the steps skipped in a row from the one at which the run was stopped, which was skipped as well."""
    row = re.match(r"([\d,]+) steps in a row", why)
    if not row or held <= (many := int(row[1].replace(",", ""))):
        return skipped
    told = f"{many:,} in a row, and step {stopped:,}, at which the run was stopped"
    return [f"{skipped[0]}: {told}" if held == many + 1 else f"{skipped[0]}, the last of them {told}"]


def _held(records: list[dict[str, Any]]) -> int:
    """Steps that were skipped, as far as the kept actions tell."""
    made = [outcome for record in records for outcome in outcomes(record)]
    return sum(one.get("remedy") == "skip" and one.get("coefficient") == 0.0 for one in made)
