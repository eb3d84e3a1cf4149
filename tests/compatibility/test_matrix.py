"""The table in the documentation is that of the tests."""

from __future__ import annotations

import json

import pytest

from tests.compatibility.matrix import TABLE, Cell, Matrix, declared, tabled


def test_the_written_table_has_the_cells_that_the_tests_declare() -> None:
    assert sorted(tabled(TABLE.read_text(encoding="utf-8"))) == sorted(set(declared())), (
        "run python -m tests.compatibility"
    )


def test_the_written_table_has_no_failure() -> None:
    assert " 0 failures," in TABLE.read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize(
    ("outcomes", "mark"),
    [({"passed"}, "✓"), ({"passed", "failed"}, "✗"), ({"passed", "skipped"}, "not run"), (None, "")],
)
def test_a_tick_needs_every_test_behind_it_to_pass(outcomes: set[str] | None, mark: str) -> None:
    assert Cell({} if outcomes is None else {"sick": outcomes}).mark("sick") == mark


def test_a_cell_without_a_row_is_seen() -> None:
    matrix = Matrix()
    matrix.cells = {
        ("Modules", "a"): Cell({"sick": {"passed"}}),
        ("Trainer", "b"): Cell({"refused": {"passed"}}, {"why": None}),
    }
    written = matrix.table("nothing")
    assert list(tabled(written)) == [("Modules", "a"), ("Trainer", "b")]
    assert "| b |  |  |  | ✓ refused: why |" in written


def test_what_passed_under_the_twin_has_a_column() -> None:
    runs = [Matrix(), Matrix(), Matrix(twin=True)]
    runs[0].cells = {("Modules", "a"): Cell({"sick": {"passed"}}, {"why": None})}
    runs[1].cells = {("Modules", "a"): Cell({"healthy": {"passed"}})}
    runs[2].cells = {("Modules", "a"): Cell({"twin": {"passed"}}), ("Modules", "unknown here"): Cell()}
    whole = Matrix()
    for run in runs:
        whole.take(json.loads(json.dumps(run.saved())), twin=run.twin)
    assert "| a | ✓ | ✓ | ✓ | why |" in whole.table("nothing") and len(whole.cells) == 1
