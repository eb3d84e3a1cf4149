"""The journal on disk: ``gradguard.jsonl``, one JSON object a line, readable without TensorBoard and after a crash.

Lines have a field ``"run"``, the id of the run that wrote them, and a field ``"event"``: ``start`` (a session
begins), ``layers`` (the names that later windows of that optimizer refer to), ``window``, ``opened``, ``acted``,
``closed``, ``notice``, ``checkpoint`` (a verdict on one) and ``accused`` (a batch, and what it is known by). Each line
is flushed as it is written, so that a killed run loses at most the end of its last line; what reads it
(:mod:`lightning_gradguard.diagnostics.journal_reader`) copes with that.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lightning_gradguard import checks
from lightning_gradguard.diagnostics.milestones import is_milestone
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.strict_json import dumps
from lightning_gradguard.diagnostics.widening import LEAD, Widening
from lightning_gradguard.records import AccusedBatch, CheckpointRecord, FloatArray, Incident, Window, to_json

FILE_NAME = "gradguard.jsonl"
VERSION = 1
PARTS = 512
SPARE = 1024

_WINDOW_FIELDS = tuple(f.name for f in dataclasses.fields(Window) if not f.name.startswith("layer"))


class Journal(Sink):
    """Append to ``gradguard.jsonl`` in a directory, which is created when the first line is written.

    Windows are merged as the run grows (:class:`~lightning_gradguard.diagnostics.widening.Widening`), so that a run of
    any length has some hundred lines for each doubling of its length; merging keeps every peak.

    Args:
        directory: Where the file goes.
        lazy: Whether to wait for the first incident, whose last windows before it are then written too; a healthy run
            leaves no file.
        run: Id of the run, on every line, by which a reader tells runs apart that share a file; by default one that no
            other has.
        on_open: Told the path when the file is opened.

    Raises:
        OSError: On writing, if the disk is full, the directory cannot be written, or the file was removed in mid-run.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        lazy: bool = False,
        run: str = "",
        on_open: Callable[[Path], None] | None = None,
    ) -> None:
        self.path = checks.path("directory", directory) / FILE_NAME
        self.run = run or new_run()
        self._on_open = on_open
        self._asleep = lazy
        self._before: deque[Window] = deque(maxlen=LEAD)
        self._file: TextIO | None = None
        self._layers: dict[int, tuple[str, ...]] = {}
        self._widening: dict[int, Widening] = {}
        self._unwritten: dict[int, Incident] = {}

    def window(self, window: Window) -> None:
        """Take in one window; write a line for every few."""
        if self._asleep:
            self._before.append(window)
            return
        self._write_windows(self._widening_of(window.optimizer).add(window))

    def incident(self, incident: Incident, event: Event) -> None:
        """Write the incident as it stands."""
        self._wake()
        if event == "opened":
            self._write_windows(self._widening_of(incident.optimizer).trouble())
        self._unwritten.pop(incident.number, None)
        if is_milestone(incident, event):
            self._write({"event": event, "incident": to_json(incident)})
        else:
            self._unwritten[incident.number] = incident

    def notice(self, step: int, message: str) -> None:
        """Write one sentence that asks for no remedy."""
        if not self._asleep:
            self._write({"event": "notice", "step": step, "message": message})

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Write a verdict on a checkpoint."""
        if not self._asleep:
            self._write({"event": "checkpoint", **to_json(record)})

    def accused(self, batch: AccusedBatch) -> None:
        """Write what an accused batch is known by."""
        if not self._asleep:
            self._write({"event": "accused", **to_json(batch)})

    def _wake(self) -> None:
        self._asleep = False
        # Those before the first incident are few: they are written as they are.
        self._write_windows(self._before)
        self._before.clear()

    def close(self) -> None:
        """Write what is pending and close the file; a later call opens it again."""
        try:
            for widening in self._widening.values():
                self._write_windows(widening.flush())
            for incident in self._unwritten.values():
                self._write({"event": "acted", "incident": to_json(incident)})
            self._unwritten.clear()
            if self._file is not None:
                self._write({"event": "ended"})
        finally:
            file, self._file, self._layers = self._file, None, {}
            if file is not None:
                file.close()

    def _widening_of(self, optimizer: int) -> Widening:
        return self._widening.setdefault(optimizer, Widening(PARTS, spare=SPARE))

    def _write_windows(self, windows: Iterable[Window]) -> None:
        for window in windows:
            self._write_window(window)

    def _write_window(self, window: Window) -> None:
        if self._layers.get(window.optimizer) != window.layers:
            self._write({"event": "layers", "optimizer": window.optimizer, "names": window.layers})
            self._layers[window.optimizer] = window.layers
        line: dict[str, Any] = {name: getattr(window, name) for name in _WINDOW_FIELDS}
        line["witnessed"] = to_json(window.witnessed)
        line["layer_peaks"] = _rounded(window.layer_peaks)
        steps = np.nan_to_num(window.layer_nonfinite).astype(np.int64)
        line["layer_nonfinite"] = steps.tolist() if steps.any() else []
        self._write({"event": "window", **line})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._open()
        elif not self.path.exists():
            # The system would take every further line without an error, and drop them with the file.
            raise FileNotFoundError(errno.ENOENT, "the journal was removed in mid-run", str(self.path))
        # Each line tells when the run was last heard of.
        self._file.write(dumps({"time": round(time.time(), 3), **entry, "run": self.run}) + "\n")
        self._file.flush()

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_torn(self.path)
        file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115, it stays open between lines
        # A killed run may have left half a line: end it, or it would take ours along.
        start = {"event": "start", "version": VERSION, "time": time.time(), "run": self.run}
        file.write(("\n" if torn else "") + dumps(start) + "\n")
        if self._on_open is not None:
            self._on_open(self.path)
        return file


def new_run() -> str:
    """Return an id that no other run has; the random numbers of the run are not asked for it."""
    return uuid.uuid4().hex[:8]


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _rounded(norms: FloatArray, digits: int = 4) -> list[float]:
    """Return norms with few significant digits, which halves the line."""
    with np.errstate(all="ignore"):
        exponents = np.floor(np.log10(np.where(norms > 0, norms, 1.0))) - (digits - 1)
        # Dividing by a power of ten gives the float nearest to the short decimal; multiplying by 1e-5 would not.
        rounded = np.where(
            exponents < 0,
            np.round(norms * 10.0**-exponents) / 10.0**-exponents,
            np.round(norms / 10.0**exponents) * 10.0**exponents,
        )
    shortened: list[float] = np.where(np.isfinite(rounded), rounded, norms).tolist()
    return shortened
