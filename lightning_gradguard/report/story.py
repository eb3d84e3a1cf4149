"""What a journal tells, in the order in which a person asks.

Is it healthy, when did it break, which layer, what was done.

Verdict, axis and words are the tab's own (:mod:`lightning_gradguard_tensorboard`), so that both say the same of a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.journal import FILE_NAME
from lightning_gradguard.diagnostics.journal_reader import JournalContents, read_runs
from lightning_gradguard.records import Window, to_json
from lightning_gradguard_tensorboard import codes, events, series, story, telling
from lightning_gradguard_tensorboard.pieces import plain_text
from lightning_gradguard_tensorboard.wire import COLUMNS

Level = Literal["good", "warning", "bad", "unknown"]
Records = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict on a run: a level (green, amber, red, grey), a word or two, and a sentence.

    ``answers`` are those to the questions, each a question and its answer; empty where nothing has happened.
    """

    level: Level
    word: str
    text: str
    answers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RunStory:
    """One journal, ready to be shown.

    Args:
        name: Directory of the journal, relative to where the search began.
        contents: What the journal holds.
        headline: The verdict on the run.
        optimizers: The windows of each optimizer on an axis of steps.
        names: What each optimizer is called, by the modules that it trains.
        records: The incidents with their places on that axis, newest first.
        missing: Sentences that say what could not be read.
    """

    name: str
    contents: JournalContents
    headline: Headline
    optimizers: dict[int, series.Series] = field(default_factory=dict, repr=False)
    names: dict[int, str] = field(default_factory=dict)
    records: Records = field(default_factory=list, repr=False)
    missing: tuple[str, ...] = ()

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What was said without an alarm, each with when; what repeats is said once, with how often."""
        said = telling.fold((one.step, telling.tidy(one.message)) for one in self.contents.notices)
        return [(telling.repeated(first, last, times), message) for first, last, times, message in said]


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


def read_stories(path: Path, root: str | os.PathLike[str]) -> list[RunStory]:
    """Read one journal, a story for each run in it; a file that cannot be opened becomes a story that says so."""
    place = path.parent if path.name == FILE_NAME else path
    name = os.path.relpath(place, root)
    if name == os.curdir:  # The search began at the run itself.
        name = place.resolve().name
    try:
        runs = read_runs(path)
    except OSError as error:
        reason = f"{path.name} could not be read: {error.strerror or error}"
        headline = Headline("unknown", "Unknown", "The journal could not be read.")
        return [RunStory(name, JournalContents(), headline, missing=(reason,))]
    if len(runs) <= 1:
        return [tell_story(name, contents, str(place)) for contents in runs.values() or [JournalContents()]]
    return [tell_story(f"{name}, run {run}" if run else name, told, str(place)) for run, told in runs.items()]


def read_story(path: Path, root: str | os.PathLike[str]) -> RunStory:
    """Read the last run of one journal."""
    return read_stories(path, root)[-1]


def tell_story(name: str, contents: JournalContents, run_dir: str | None = None) -> RunStory:
    """Return the story of what a journal holds, in the run's directory if that is known."""
    indices = sorted({window.optimizer for window in contents.windows})
    optimizers = {i: lay_out([w for w in contents.windows if w.optimizer == i]) for i in indices}
    names = telling.optimizer_names([one.names for one in optimizers.values()])
    records = place(contents, optimizers)
    headline = _headline(contents, optimizers, records, run_dir)
    return RunStory(
        name, contents, headline, optimizers, dict(zip(indices, names, strict=True)), records, _missing(contents)
    )


def lay_out(windows: Sequence[Window]) -> series.Series:
    """Put the windows of one optimizer on an axis, in the order in which they were written.

    A resumed run may go back.
    """
    ticks = np.arange(len(windows))
    names = tuple(dict.fromkeys(name for window in windows for name in window.layers))
    numbers = [[_float(window.number(column)) for column in COLUMNS] for window in windows]
    table = np.array(numbers, np.float64).reshape(-1, len(COLUMNS))
    payloads = [codes.spread(codes.halves(w.layer_peaks, w.layer_nonfinite)[None], w.layers, names) for w in windows]
    timeline = series.lay_out(ticks, ticks.astype(np.float64), table)
    return series.assemble(names, timeline, ticks, ticks.astype(np.float64), np.concatenate(payloads))


def place(contents: JournalContents, optimizers: dict[int, series.Series]) -> Records:
    """Return incidents as the tab has them, with their places on the axis, newest first."""
    axes = {index: one.windows.axis for index, one in optimizers.items()}
    # One by one: numbers start again when a run is repeated in the same directory.
    records = []
    for number, incident in enumerate(contents.incidents):
        told = events.incidents([events.Event(0, math.inf, incident.optimizer, {"incident": to_json(incident)})], axes)
        # A journal's lines have no place on the axis by the clock: that of a record is only told.
        time = contents.times[number] if number < len(contents.times) else math.nan
        records += [{**record, "time": time} for record in told]
    return sorted(records, key=lambda record: (record["place"], record["number"]), reverse=True)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _headline(
    contents: JournalContents, optimizers: dict[int, series.Series], records: Records, run_dir: str | None
) -> Headline:
    if contents.empty:
        return Headline("unknown", "Unknown", "Nothing was recorded yet.")
    told = {str(blame.get("layer")) for record in records for blame in record.get("blame", ())}
    unusual = [
        {"layer": one.names[found.layer], "step": found.step, "factor": found.factor}
        for one in optimizers.values()
        for found in one.outliers
        if one.names[found.layer] not in told
    ]
    said = story.of_run(records, [one.windows for one in optimizers.values()], unusual, contents.heard, run_dir)
    answers = tuple((answer["question"], plain_text(answer["words"])) for answer in said["answers"])
    return Headline(said["level"], said["headline"], plain_text(said["words"]).strip(), answers)


def _missing(contents: JournalContents) -> tuple[str, ...]:
    if contents.empty and contents.problems:
        first = contents.problems[0]
        reason = f"line {first.line:,} {wording.clean(first.reason)}"
        return (f"none of {wording.count(contents.unreadable, 'line')} could be read: is it a journal? {reason}",)
    sentences = [f"line {p.line:,} {wording.clean(p.reason)}" for p in contents.problems]
    if (more := contents.unreadable - len(contents.problems)) > 0:
        sentences.append(f"and {more:,} more lines")
    if not contents.windows:
        sentences.append("no statistics of any step are in the journal, so there is no chart")
    elif not any(w.layers for w in contents.windows):
        sentences.append("no statistics of layers are in the journal, so there is no heatmap")
    return tuple(sentences)
