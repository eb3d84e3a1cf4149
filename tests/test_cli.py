import os
import subprocess
import sys

import pytest

from lightning_gradguard.cli import COMPLETE, INCOMPLETE, NOTHING, main
from lightning_gradguard.diagnostics import Journal
from tests.diagnostics.examples import incident, window


@pytest.fixture
def run(tmp_path):
    journal = Journal(tmp_path / "run" / "version_0")
    for tick in range(5):
        journal.window(window(tick))
    journal.incident(incident(closed=52, helped=True), "closed")
    journal.close()
    return tmp_path / "run"


def test_report_prints_the_story_and_writes_the_page(run, capsys):
    assert main(["report", str(run)]) == COMPLETE
    out = capsys.readouterr().out
    assert (
        "1 incident in 125 steps; the last: non-finite at step 40, first in conv2" in out
        and "gradguard-report.html" in out
    )
    assert "<svg" in (run / "gradguard-report.html").read_text(encoding="utf-8")


def test_a_run_from_its_own_directory_has_that_directorys_name(run, capsys, monkeypatch):
    monkeypatch.chdir(run / "version_0")
    assert main(["report", ".", "--no-html"]) == COMPLETE
    assert "version_0" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_gets_no_traceback(run):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lightning_gradguard", "report", str(run), "--no-html"]
    with os.fdopen(write, "wb") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (NOTHING, "")


def test_the_page_goes_where_it_is_asked_or_nowhere(run, tmp_path):
    assert main(["report", str(run), "--html", str(tmp_path / "out.html"), "--no-color"]) == COMPLETE
    assert main(["report", str(run), "--no-html"]) == COMPLETE
    assert (tmp_path / "out.html").exists() and not (run / "gradguard-report.html").exists()


def test_a_directory_without_a_journal_says_what_to_do(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == NOTHING
    assert "no gradguard.jsonl below" in capsys.readouterr().err


def test_a_damaged_journal_is_shown_with_a_status_of_its_own(run, capsys):
    path = run / "version_0" / "gradguard.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["report", str(run)]) == INCOMPLETE
    assert "cut off" in capsys.readouterr().out


def test_an_unreadable_journal_among_others_is_named(run, capsys):
    (run / "version_1").mkdir()
    (run / "version_1" / "gradguard.jsonl").symlink_to(run / "gone")
    assert main(["report", str(run)]) == INCOMPLETE
    assert "could not be read" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_said(run, capsys):
    assert main(["report", str(run), "--html", str(run / "no" / "such" / "x.html")]) == NOTHING
    assert "cannot write" in capsys.readouterr().err


def test_a_lone_surrogate_costs_nothing(tmp_path):
    journal = Journal(tmp_path)
    journal.window(window(layers=("a", "b")))
    journal.close()
    text = journal.path.read_text().replace('"b"', '"\\ud800"')
    journal.path.write_text(text)
    assert main(["report", str(tmp_path)]) == COMPLETE


def test_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["report"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "exit status" in capsys.readouterr().out


def test_colour_is_only_for_terminals(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["report", str(run), "--no-html"])
    assert "\x1b[" in capsys.readouterr().out
    main(["report", str(run), "--no-html", "--no-color"])
    assert "\x1b[" not in capsys.readouterr().out
    os.environ["NO_COLOR"] = "1"
    try:
        main(["report", str(run), "--no-html"])
    finally:
        del os.environ["NO_COLOR"]
    assert "\x1b[" not in capsys.readouterr().out


def test_a_bundle_that_is_not_there_is_named_in_one_sentence(tmp_path, capsys):
    missing = tmp_path / "bundle.pt"
    assert main(["replay", str(missing), "--module", "torch.nn.Identity"]) != 0
    assert capsys.readouterr().err == f"lightning-gradguard: cannot look into {missing}: No such file or directory\n"
