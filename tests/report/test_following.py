"""A run that is under way, told in a terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_gradguard.cli import _in_place, main, watch
from lightning_gradguard.diagnostics import Journal, read_journal
from lightning_gradguard.report import follow
from tests.diagnostics.examples import window
from tests.diagnostics.test_wording import SECOND_KEPT


def write(folder: Path, **changes: Any) -> Path:
    journal = Journal(folder)
    for tick in range(20):
        journal.window(window(tick, loss_low=0.1, loss_high=0.4, loss_mean=0.2, **changes))
    journal.incident(dataclasses.replace(SECOND_KEPT, step=40), "closed")
    journal.close()
    return journal.path


def test_a_run_is_followed_in_a_terminal(tmp_path: Path, capsys: Any) -> None:
    assert watch(tmp_path, every=0.01, color=False, rounds=2) == 0
    assert capsys.readouterr().out.count("Waiting for a journal") == 1, "nothing new is not said again"
    write(tmp_path / "run")
    assert watch(tmp_path, every=0.01, color=False, rounds=3) == 0
    told = capsys.readouterr().out
    assert told.count("Recovered") == 1 and "Did it help?" in told and "log10 loss" in told
    assert all(len(line) < 200 for line in told.splitlines())


def test_following_has_its_arguments_checked(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["follow", ".", "--every", "0"])
    assert "at least 0.1 seconds" in capsys.readouterr().err


def test_no_line_is_longer_than_the_terminal(tmp_path: Path) -> None:
    drawn: list[str] = []
    write(tmp_path / "run")
    follow(tmp_path, drawn.append, every=0.01, color=False, rounds=1, width=lambda: 80)
    assert drawn and all(len(line) <= 80 for line in drawn[0].splitlines()), drawn[0]


def test_it_returns_when_the_run_that_it_watches_has_ended(tmp_path: Path) -> None:
    drawn: list[str] = []
    write(tmp_path / "before")

    def draw(text: str) -> None:
        drawn.append(text)
        if len(drawn) == 1:
            write(tmp_path / "run")

    follow(tmp_path, draw, every=0.01, color=False)
    assert len(drawn) == 2 and drawn[-1].endswith("The run has ended.\n")
    assert "has ended.\n" not in drawn[0], "one that had ended before may be followed by another"


def test_a_terminal_keeps_one_place_without_an_empty_screen_in_between() -> None:
    drawn = _in_place("one\ntwo\nthree\n", rows=3)
    assert drawn == "\x1b[Htwo\x1b[K\nthree\x1b[K\n\x1b[J", "the newest, which is last, is what fits"


def test_a_run_is_heard_of_as_long_as_it_writes_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.window(window(0))
    monkeypatch.setattr("time.time", lambda: 2e9)
    journal.window(window(1))
    assert read_journal(journal.path).heard.time == 2e9
