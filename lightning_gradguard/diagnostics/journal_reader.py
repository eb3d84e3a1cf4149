"""Read a journal back, however damaged: what can be read is returned, and what cannot is said.

One idea, of more than 200 lines: all kinds of lines, and what may be wrong with them, are read in one place.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from lightning_gradguard.diagnostics.decode import Malformed, decode
from lightning_gradguard.records import AccusedBatch, CheckpointRecord, Incident, Window
from lightning_gradguard_tensorboard.clock import Heard

MAX_PROBLEMS = 100
LONGEST_LINE = 2**24
"""Bytes of a line; a window of a hundred thousand layers has two million."""
SKIPPED_AT_ONCE = 2**16
"""Bytes that are skipped at once of a line that is longer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that could not be read: its number, counted from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence that asked for no remedy."""

    step: int
    message: str


@dataclass(slots=True)
class JournalContents:
    """What a journal holds.

    Args:
        windows: In the order they were written; a resumed run may go back in steps.
        incidents: Each once, as it was last written, in the order they opened.
        notices: In the order they were written.
        checkpoints: Verdicts on checkpoints, in the order they were given.
        accused: Batches that the evidence spoke against, in the order in which it did.
        times: When each incident was first told of, in seconds since 1970; NaN where its journal does not say.
        heard: The last that was heard of the run.
        sessions: Count of times the run was started or resumed.
        problems: Lines that could not be read, at most :data:`MAX_PROBLEMS`.
        unreadable: Count of all lines that could not be read.
    """

    windows: list[Window] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    accused: list[AccusedBatch] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    heard: Heard = field(default_factory=Heard)
    sessions: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreadable: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing at all could be shown."""
        return not (self.windows or self.incidents or self.notices)


def read_journal(path: str | os.PathLike[str]) -> JournalContents:
    """Read ``gradguard.jsonl``, all runs in it as one; nothing in it is executed.

    Raises:
        OSError: If the file cannot be opened or read.
    """
    return _read(path, split=False).get("", JournalContents())


def read_runs(path: str | os.PathLike[str]) -> dict[str, JournalContents]:
    """Read ``gradguard.jsonl`` run by run, by id, in the order in which they began.

    Lines of older versions have the id ``""``.

    A line that cannot be read is of the run of the line before it.

    Raises:
        OSError: If the file cannot be opened or read.
    """
    return _read(path, split=True)


def _read(path: str | os.PathLike[str], *, split: bool) -> dict[str, JournalContents]:
    readers: dict[str, _Reader] = {}
    with open(path, "rb") as file:
        parsed = [(number, _parsed(line)) for number, line in enumerate(_lines(file), start=1) if line.strip()]
    run = next((_run(entry) for _, entry in parsed if isinstance(entry, dict)), "") if split else ""
    for number, entry in parsed:
        if split and isinstance(entry, dict):
            run = _run(entry)
        readers.setdefault(run, _Reader()).take(number, entry)
    return {run: reader.contents() for run, reader in readers.items()}


def _parsed(line: bytes) -> dict[str, Any] | str:
    """Return what a line holds, or why it cannot be read."""
    if len(line) > LONGEST_LINE:
        return f"is longer than {LONGEST_LINE:,} bytes"
    try:
        entry = json.loads(line.decode("utf-8"))
        return entry if isinstance(entry, dict) else f"should be an object, not {type(entry).__name__}"
    except (ValueError, RecursionError) as error:
        return _why(error) if line.endswith(b"\n") else "is cut off: the run was killed while writing it"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of a line that has no end only so much as shows that it is not the journal's."""
    while line := file.readline(LONGEST_LINE + 1):
        yield line
        ended = len(line) <= LONGEST_LINE or line.endswith(b"\n")
        while not ended:
            # In pieces that fit a processor's cache, which is seven times as fast.
            rest = file.readline(SKIPPED_AT_ONCE)
            ended = not rest or rest.endswith(b"\n")


class _Reader:
    def __init__(self) -> None:
        self._result = JournalContents()
        self._layers: dict[tuple[str, int], tuple[str, ...]] = {}
        self._times: dict[tuple[str, int, int, int], float] = {}
        self._incidents: dict[tuple[str, int, int, int], Incident] = {}

    def take(self, number: int, entry: dict[str, Any] | str) -> None:
        if isinstance(entry, str):
            self._complain(number, entry)
            return
        try:
            self._sort_in(entry)
        except (ValueError, RecursionError) as error:
            self._complain(number, _why(error))

    def contents(self) -> JournalContents:
        self._result.incidents = list(self._incidents.values())
        self._result.times = [self._times[key] for key in self._incidents]
        return self._result

    def _sort_in(self, entry: dict[str, Any]) -> None:
        event, time = entry.get("event"), _time(entry)
        if event in ("start", "ended") or not math.isnan(time):
            self._result.heard = Heard(time, event == "ended")
        if event == "ended":
            return
        if event == "start":
            self._result.sessions += 1
        elif event == "layers":
            names = decode(_Layers, entry)
            self._layers[_run(entry), names.optimizer] = names.names
        elif event == "window":
            self._result.windows.append(self._window(entry))
        elif event == "notice":
            self._result.notices.append(decode(Notice, entry))
        elif event == "checkpoint":
            self._result.checkpoints.append(decode(CheckpointRecord, entry))
        elif event == "accused":
            self._result.accused.append(decode(AccusedBatch, entry))
        elif event in ("opened", "acted", "closed"):
            incident = decode(Incident, entry.get("incident"))
            # Numbers start again when a run is repeated in the same directory; together with the step they do not.
            key = _run(entry), incident.optimizer, incident.number, incident.step
            self._incidents[key] = _with_all_actions(self._incidents.get(key), incident)
            self._times.setdefault(key, time)
        else:
            raise Malformed(f"unknown event {str(event)[:40]!r}")

    def _window(self, entry: dict[str, Any]) -> Window:
        peaks = entry.get("layer_peaks")
        counts = entry.get("layer_nonfinite")
        size = len(peaks) if isinstance(peaks, list) else 0
        optimizer = entry.get("optimizer")
        layers = self._layers.get((_run(entry), optimizer), ()) if isinstance(optimizer, int) else ()
        # Before anything is read, since there may be many such windows, and many names.
        if size != len(layers) or (counts and (not isinstance(counts, list) or len(counts) != size)):
            raise Malformed(f"has {size} layers where {len(layers)} names are known")
        window = decode(Window, {**entry, "layers": [], "layer_nonfinite": counts or [0] * size})
        return dataclasses.replace(window, layers=layers)

    def _complain(self, line: int, reason: str) -> None:
        self._result.unreadable += 1
        if len(self._result.problems) < MAX_PROBLEMS:
            self._result.problems.append(Problem(line, reason))


@dataclass(frozen=True, slots=True)
class _Layers:
    optimizer: int
    names: tuple[str, ...]


def _with_all_actions(before: Incident | None, incident: Incident) -> Incident:
    """Return an incident with the actions that only earlier lines tell of: each keeps its first and its last."""
    if before is None or incident.alarms <= len(incident.actions):
        return incident
    known = {action.step: action for action in (*before.actions, *incident.actions)}
    return dataclasses.replace(incident, actions=tuple(known[step] for step in sorted(known)))


def _time(entry: dict[str, Any]) -> float:
    told = entry.get("time")
    # A whole number may be too large for a double.
    return told if isinstance(told, float) else math.nan


def _run(entry: dict[str, Any]) -> str:
    return str(entry.get("run", ""))


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return "is nested too deeply" if isinstance(error, RecursionError) else str(error)
