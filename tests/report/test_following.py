"""A run that is under way, told in a terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_gradguard.cli import main, watch
from lightning_gradguard.diagnostics import Journal
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
