"""What a journal tells, in the order in which a person asks: is it healthy, when did it break, which layer, what was done."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.journal import FILE_NAME
from lightning_gradguard.diagnostics.journal_reader import JournalContents, read_journal
from lightning_gradguard.diagnostics.timeline import Timeline
from lightning_gradguard.records import Incident, Window

Level = Literal["healthy", "mended", "sick", "unknown"]
COLUMNS = 400


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict on a run: a level (green, amber, red, grey), one sentence, and a word for the level where its own says too much."""

    level: Level
    text: str
    word: str = ""


@dataclass(frozen=True, slots=True)
class RunStory:
    """One journal, ready to be shown.

    Args:
        name: Directory of the journal, relative to where the search began.
        contents: What the journal holds.
        headline: The verdict on the run.
        timelines: The windows of each optimizer, thinned to what fits a page.
        missing: Sentences that say what could not be read.
    """

    name: str
    contents: JournalContents
    headline: Headline
    timelines: dict[int, Timeline] = field(repr=False)
    missing: tuple[str, ...] = ()


def find_journals(directory: str | os.PathLike[str], complain: Callable[[OSError], None] | None = None) -> list[Path]:
    """Return all journals below ``directory`` (or the file itself), sorted; links to directories are not followed.

    Args:
        directory: Where to look.
        complain: Told of each directory that cannot be opened.
    """
    root = Path(directory)
    if root.is_file():
        return [root]
    found = [Path(at) / FILE_NAME for at, _, files in os.walk(root, onerror=complain) if FILE_NAME in files]
    return sorted(found)


def read_story(path: Path, root: str | os.PathLike[str]) -> RunStory:
    """Read one journal; a file that cannot be opened becomes a story that says so."""
    name = os.path.relpath(path.parent if path.name == FILE_NAME else path, root)
    try:
        contents = read_journal(path)
    except OSError as error:
        reason = f"{path.name} could not be read: {error.strerror or error}"
        return RunStory(name, JournalContents(), Headline("unknown", "The journal could not be read."), {}, (reason,))
    timelines: dict[int, Timeline] = {}
    for window in contents.windows:
        timelines.setdefault(window.optimizer, Timeline(COLUMNS)).add(window)
    return RunStory(name, contents, headline(contents), timelines, _missing(contents))


def headline(contents: JournalContents) -> Headline:
    """Return the verdict sentence and its level; in doubt the worse one."""
    incidents, last = contents.incidents, _last_windows(contents)
    if contents.empty:
        return Headline("unknown", "Nothing was recorded yet.")
    steps = max((w.step + 1 for w in contents.windows), default=0)
    bad_end = any(not math.isfinite(w.norm_before) for w in last)
    if not incidents:
        if bad_end:
            return Headline("sick", f"The last gradients were not finite, after {wording.count(steps, 'step')}.")
        routine = sum(w.overflows for w in last)
        aside = f" The GradScaler skipped {wording.count(routine, 'step')} by itself, as it should." if routine else ""
        return Headline("healthy", f"Healthy: no incident in {wording.count(steps, 'step')}.{aside}")
    newest = incidents[-1]
    where = wording.suspect(newest)
    sentence = f"{wording.count(len(incidents), 'incident')}; last: {newest.form} at step {newest.step:,}"
    sentence += f", {where}" if where else ""
    sentence += "".join(f"; {part}" for part in _interventions(last))
    if any(i.closed is None for i in incidents):
        return Headline("sick", f"{sentence}; not over when the journal ends.")
    failed = [i for i in incidents if wording.state(i) == "failed"]
    if failed and failed[-1].trials and not bad_end:
        sentence += f"; incident {failed[-1].number:,}: nothing that was tried helped, and it was taken back"
        left = wording.left(failed[-1])
        return Headline("sick", f"{sentence}; left: {left}." if left else f"{sentence}.")
    if failed or bad_end:
        return Headline("sick", f"{sentence}; the remedies did not help.")
    return _over(incidents, sentence)


def _over(incidents: list[Incident], sentence: str) -> Headline:
    """Return the verdict on a run whose incidents are all over, none of them given up."""
    since, states = max(i.closed or 0 for i in incidents), {wording.state(i) for i in incidents}
    if all(map(wording.watched, incidents)):
        sentence += "; nothing was changed, only watched"
    if states == {"calm"}:
        return Headline("healthy", f"{sentence}; calm again since step {since:,}.", "Calm again")
    if "anew" in states:
        anew = max(i.closed or 0 for i in incidents if wording.state(i) == "anew")
        sentence += f"; a new regime was learned anew from step {anew:,}"
    word = "" if "helped" in states else "Calm again"
    return Headline("mended", f"{sentence}; {'calm again' if word else 'healthy'} since step {since:,}.", word)


def _interventions(last: list[Window]) -> list[str]:
    skipped, clipped = sum(w.skipped for w in last), sum(w.clipped for w in last)
    parts = [f"{wording.count(skipped, 'step')} skipped"] if skipped else []
    return parts + ([f"{wording.count(clipped, 'step')} clipped"] if clipped else [])


def _last_windows(contents: JournalContents) -> list[Window]:
    return list({window.optimizer: window for window in contents.windows}.values())


def _missing(contents: JournalContents) -> tuple[str, ...]:
    sentences = [f"line {p.line:,} {wording.clean(p.reason)}" for p in contents.problems]
    if (more := contents.unreadable - len(contents.problems)) > 0:
        sentences.append(f"and {more:,} more lines")
    if not contents.windows:
        sentences.append("no statistics of any step are in the journal, so there is no chart")
    elif not any(w.layers for w in contents.windows):
        sentences.append("no statistics of layers are in the journal, so there is no heatmap")
    return tuple(sentences)
