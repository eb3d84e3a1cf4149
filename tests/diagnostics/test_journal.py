import dataclasses
import json
import math
import os

import numpy as np
import pytest

from lightning_gradguard.diagnostics import Journal, read_journal, read_runs
from tests.diagnostics.examples import HOSTILE, incident, window


def write(directory, ticks=range(3)):
    journal = Journal(directory)
    for tick in ticks:
        journal.window(window(tick, norm_peak=math.inf if tick == 1 else 2.0))
    journal.incident(incident(), "opened")
    journal.incident(dataclasses.replace(incident(), closed=52, helped=True), "closed")
    journal.notice(60, HOSTILE)
    journal.close()
    return journal.path


def same(first, second):
    return str(first) == str(second) and np.allclose(first.layer_peaks, second.layer_peaks, rtol=1e-3)


def test_what_was_written_comes_back(tmp_path):
    contents = read_journal(write(tmp_path / "new" / "directory"))
    assert contents.problems == [] and contents.sessions == 1
    assert all(same(w, window(t, norm_peak=math.inf if t == 1 else 2.0)) for t, w in enumerate(contents.windows))
    assert str(contents.incidents) == str([dataclasses.replace(incident(), closed=52, helped=True)])
    assert contents.notices[0].message == HOSTILE


def test_every_line_is_strict_json(tmp_path):
    for line in write(tmp_path).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: 1 / 0)


def test_a_killed_run_loses_only_its_last_line_and_can_be_resumed(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    for cut in range(1, 200, 7):
        path.write_bytes(whole[:-cut])
        contents = read_journal(path)
        assert contents.windows and len(contents.incidents) == 1 and contents.unreadable <= 1
    path.write_bytes(whole[:-9])
    assert "cut off" in read_journal(path).problems[0].reason
    write(tmp_path, range(3, 5))
    contents = read_journal(path)
    assert contents.sessions == 2 and len(contents.windows) == 5 and contents.unreadable == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "should be an object, not list"),
        (b'{"event":"exec"}', "unknown event 'exec'"),
        (b'{"event":"opened"}', "Incident should be an object"),
        (b'{"event":"opened","incident":{"number":"1"}}', "Incident.number should be int, not str"),
        (b'{"event":"opened","incident":{"number":1,"optimizer":0,"step":2}}', "Incident.form is missing"),
        (b'{"event":"notice","step":1e999,"message":"x"}', "Notice.step should be int"),
        (b'{"event":"layers","optimizer":0,"names":[1]}', "names[0] should be str"),
        (b'{"event":"window","optimizer":[],"layer_peaks":3}', "Window.step is missing"),
        (b"1" * 5000, "digit"),
    ],
)
def test_altered_lines_are_reported_and_the_rest_is_read(tmp_path, line, why):
    path = write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    contents = read_journal(path)
    assert len(contents.windows) == 3 and len(contents.incidents) == 1
    assert contents.unreadable == 1 and contents.problems[0].line == 3
    assert why in contents.problems[0].reason


def test_lost_layer_names_are_reported(tmp_path):
    path = write(tmp_path)
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b'"layers"' not in line))
    contents = read_journal(path)
    assert contents.unreadable == 3 and "3 layers where 0 names" in contents.problems[0].reason


def test_a_long_run_is_thinned_without_losing_a_peak(tmp_path):
    journal = Journal(tmp_path)
    for tick in range(5000):
        journal.window(window(tick, layers=("a",), norm_peak=1e5 if tick == 4000 else 1.0))
    journal.close()
    windows = read_journal(journal.path).windows
    assert len(windows) < 2600 and max(w.norm_peak for w in windows) == 1e5
    assert windows[0].first_step == 0 and windows[-1].step == 5000 * 25 - 1


def test_a_long_incident_does_not_fill_the_disk(tmp_path):
    journal = Journal(tmp_path)
    for alarms in range(1, 5000):
        journal.incident(incident(alarms=alarms), "acted")
    journal.close()
    assert len(journal.path.read_text().splitlines()) < 40
    assert read_journal(journal.path).incidents[0].alarms == 4999, "the end of the run tells how many there were"


def test_a_directory_that_cannot_be_made_raises_on_writing_only(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "below")
    journal.close()
    with pytest.raises(OSError, match="below"):
        journal.notice(1, "x")


def test_a_lazy_journal_waits_for_the_first_incident_and_tells_what_came_before(tmp_path):
    journal = Journal(tmp_path, lazy=True)
    for tick in range(100):
        journal.window(window(tick))
    journal.notice(60, "nothing to worry about")
    assert not journal.path.exists()
    journal.incident(incident(), "opened")
    journal.window(window(100))
    contents = read_journal(journal.path)
    assert [w.tick for w in contents.windows] == list(range(80, 101)) and len(contents.incidents) == 1


def test_a_lazy_journal_of_a_healthy_run_leaves_nothing_behind(tmp_path):
    journal = Journal(tmp_path / "new", lazy=True)
    journal.window(window(0))
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_lines_are_on_disk_at_once(tmp_path):
    journal = Journal(os.fspath(tmp_path))
    journal.incident(incident(), "opened")
    assert len(read_journal(journal.path).incidents) == 1


def test_runs_that_share_a_file_are_told_apart(tmp_path):
    first, second = Journal(tmp_path, run="first"), Journal(tmp_path)
    first.window(window(0, layers=("a", "b"), norm_peak=1.0))
    second.window(window(0, layers=("c", "d"), norm_peak=2.0))
    first.incident(incident(), "opened")
    second.close()
    first.close()
    with open(first.path, "a") as file:
        file.write("no JSON\n")
    runs = read_runs(first.path)
    assert list(runs) == ["first", second.run] and len(second.run) == 8
    assert [len(contents.incidents) for contents in runs.values()] == [1, 0]
    assert [contents.windows[0].layers for contents in runs.values()] == [("a", "b"), ("c", "d")]
    assert [contents.unreadable for contents in runs.values()] == [1, 0]
    assert len(read_journal(first.path).windows) == 2 and not read_journal(first.path).problems[1:]


def test_lines_of_older_versions_are_one_run(tmp_path):
    (tmp_path / "gradguard.jsonl").write_text(
        'no JSON\n{"event": "start"}\n{"event": "notice", "step": 1, "message": "a"}\n'
    )
    runs = read_runs(tmp_path / "gradguard.jsonl")
    assert list(runs) == [""] and runs[""].unreadable == 1 and len(runs[""].notices) == 1


def test_who_wants_to_know_is_told_where_the_file_is(tmp_path):
    told = []
    journal = Journal(tmp_path, lazy=True, on_open=told.append)
    journal.window(window(0))
    assert not told
    journal.incident(incident(), "opened")
    assert told == [tmp_path / "gradguard.jsonl"]
