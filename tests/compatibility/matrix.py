"""Cells of the compatibility matrix: tests declare them, one run fills them in, and the table is written from that.

A test that shows something of a cell carries ``@pytest.mark.cell(AXIS, NAME, *SHOWS, note=...)``, where what it shows
is ``"healthy"`` (the end is bit-identical to the unguarded one), ``"sick"`` (trouble is handled) or ``"refused"`` (a
clear error, whose reason is the note). :func:`cells` marks the values of a parametrised test.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "compatibility" / "matrix.md"
AXES = ("Optimization", "Optimizers", "Precision", "Schedulers", "Strategies", "Modules", "Trainer")
SHOWS = ("healthy", "sick", "refused")
TWIN = "twin"
TICK, CROSS, NOT_RUN, NOTHING = "✓", "✗", "not run", ""


def cells(axis: str, values: Mapping[str, Any], *shows: str, notes: Mapping[str, str] | None = None) -> list[Any]:
    """Return the values as parameters of a test, each a cell of the axis."""
    return [
        pytest.param(value, id=name, marks=pytest.mark.cell(axis, name, *shows, note=(notes or {}).get(name, "")))
        for name, value in values.items()
    ]


@dataclass
class Cell:
    """One row of the table.

    Args:
        outcomes: By what is shown: the outcomes of the tests behind it; under ``"twin"`` those of a run of them all
            with ``pytorch_lightning`` in place of ``lightning.pytorch``.
        notes: What a reader must know besides.
    """

    outcomes: dict[str, set[str]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def mark(self, shown: str) -> str:
        """Return the tick, or what is in its place."""
        found = self.outcomes.get(shown)
        if found is None:
            return NOTHING
        return CROSS if "failed" in found else NOT_RUN if "skipped" in found else TICK


class Matrix:
    """A pytest plugin that notes the outcome of every test behind a cell.

    Args:
        twin: Whether the tests run under the twin package.
    """

    def __init__(self, *, twin: bool = False) -> None:
        self.twin = twin
        self.cells: dict[tuple[str, str], Cell] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Note how one phase of a test ended."""
        report = yield
        for mark in item.iter_markers("cell"):
            if report.when == "call" or not report.passed:
                self._note(mark, report)
        return report

    def _note(self, mark: pytest.Mark, report: pytest.TestReport) -> None:
        axis, name, *shows = mark.args
        cell = self.cells.setdefault((axis, name), Cell())
        for shown in (TWIN,) if self.twin else shows:
            cell.outcomes.setdefault(shown, set()).add(report.outcome)
        if note := mark.kwargs.get("note"):
            cell.notes[note] = None
        if report.skipped and isinstance(report.longrepr, tuple):
            cell.notes[report.longrepr[2].removeprefix("Skipped: ")] = None

    def saved(self) -> list[list[Any]]:
        """Return axis, name, outcomes and notes of every cell, for :meth:`take`."""
        return [
            [*key, {shown: sorted(found) for shown, found in cell.outcomes.items()}, list(cell.notes)]
            for key, cell in self.cells.items()
        ]

    def take(self, cells: list[list[Any]], *, twin: bool) -> None:
        """Take in what :meth:`saved` of another run returned; of one under the twin the outcomes of known cells."""
        for axis, name, outcomes, notes in cells:
            if twin and (axis, name) not in self.cells:
                continue
            cell = self.cells.setdefault((axis, name), Cell())
            for shown, found in outcomes.items():
                cell.outcomes.setdefault(shown, set()).update(found)
            cell.notes.update(dict.fromkeys(() if twin else notes))

    def table(self, versions: str) -> str:
        """Return the table as Markdown."""
        counts = dict.fromkeys((TICK, CROSS, NOT_RUN), 0)
        lines = []
        for axis in AXES:
            lines += ["", f"## {axis}", "", "| | healthy | sick | twin | |", "|---|---|---|---|---|"]
            for (of, name), cell in self.cells.items():
                if of == axis:
                    lines.append(_row(name, cell))
                    for shown in cell.outcomes:
                        counts[cell.mark(shown)] += 1
        told = f"{len(self.cells)} cells, {counts[TICK]} ticks, {counts[CROSS]} failures, {counts[NOT_RUN]} not run"
        return "\n".join([f"Written by `python -m tests.compatibility` with {versions}: {told}.", *lines, ""])


def _row(name: str, cell: Cell) -> str:
    notes = list(cell.notes)
    if "refused" in cell.outcomes:
        notes.insert(0, f"{cell.mark('refused')} refused" + (":" if notes else ""))
    said = "; ".join(notes).replace("|", "\\|").replace("refused:;", "refused:")
    return f"| {name} | {cell.mark('healthy')} | {cell.mark('sick')} | {cell.mark(TWIN)} | {said} |"


def files() -> list[Path]:
    """Return the test modules that declare cells."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    # By what a file names, however it goes on: a cell may be declared through a partial of the marker.
    return [file for file in found if "cells(" in (text := file.read_text()) or "mark.cell" in text]


def declared() -> Iterator[tuple[str, str]]:
    """Yield axis and name of every cell that a test declares, without running any."""
    for file in files():
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for function in vars(module).values():
            for mark in _marks(function):
                if mark.name == "cell":
                    axis, name, *shows = mark.args
                    assert axis in AXES and shows and set(shows) <= set(SHOWS), mark
                    yield axis, name


def _marks(function: Any) -> Iterator[pytest.Mark]:
    marks = getattr(function, "pytestmark", [])
    for mark in marks if isinstance(marks, list) else []:
        yield mark
        if mark.name == "parametrize":
            for value in mark.args[1]:
                yield from getattr(value, "marks", ())


def tabled(text: str) -> Iterator[tuple[str, str]]:
    """Yield axis and name of every cell in a written table."""
    axis = ""
    for line in text.splitlines():
        if line.startswith("## "):
            axis = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| |"):
            yield axis, line.split("|")[1].strip()
