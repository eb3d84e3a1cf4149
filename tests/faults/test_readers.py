"""Logs that were made to harm their readers: each is answered at once, and one bad event costs nothing but itself."""

from __future__ import annotations

import json
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto import tensor_pb2, types_pb2

from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics import Journal, journal_reader, read_journal
from tests.diagnostics.examples import incident, window

sys.path.append(str(Path(__file__).parents[1] / "tensorboard_plugin"))
import synthetic
from test_backend import Local

SECONDS = 2.0


def text(*texts: bytes) -> tensor_pb2.TensorProto:
    made = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=list(texts))
    if len(texts) > 1:
        made.tensor_shape.dim.add(size=len(texts))
    return made


def nested(depth: int) -> bytes:
    return b'{"incident": {"number": 2, "step": 9, "more": ' + b"[" * depth + b"]" * depth + b"}}"


BAD: dict[str, tensor_pb2.TensorProto] = {
    "two elements": text(b"{}", b"{}"),
    "900 deep": text(nested(900)),
    "100,000 deep": text(nested(100_000)),
    "400 digits": text(b'{"incident": {"number": 2, "step": 1' + b"0" * 400 + b', "closed": 1' + b"0" * 400 + b"}}"),
    "a rate of 400 digits": text(b'{"event": "x", "step": 1' + b"0" * 400 + b', "message": "m", "incident": null}'),
    "no UTF-8": text(b"\xff\xfe"),
    "8 MB": text(b'{"message": "' + b"x" * 2**23 + b'"}'),
    "numbers": synthetic._tensor(np.zeros(3), types_pb2.DT_DOUBLE),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_event_costs_nothing_but_itself(tmp_path: Path, kind: str) -> None:
    writer = synthetic.Writer(tmp_path / "run")
    for tick in range(20):
        writer.window(tick, np.arange(19.0) + tick)
    writer.incident("opened", 5, synthetic.incident(1, 5, "sudden", "head"))
    writer._add("gradguard/incidents", 90, BAD[kind], "gradguard_incidents", b"{}")
    writer.incident("closed", 15, synthetic.incident(1, 5, "sudden", "head", closed=15))
    writer.close()
    local, begun = Local(tmp_path), time.monotonic()
    answer = local.get("/story", run="run")
    assert answer.status_code == 200
    assert 1 in [one["number"] for one in json.loads(answer.data)["incidents"]]
    assert local.get("/runs").status_code == 200
    assert time.monotonic() - begun < SECONDS


def test_windows_that_are_no_numbers_or_never_were_are_left_out(tmp_path: Path) -> None:
    writer = synthetic.Writer(tmp_path / "run")
    for tick in range(20):
        writer.window(tick, np.arange(19.0) + tick)
    writer.window(20, np.full(19, 1e300))
    writer._add("gradguard/windows", 21, text(b"no number"), "gradguard_layers", b"{}")
    writer._add("gradguard/layers", 21, text(b"no number"), "gradguard_layers", b'{"version": 1e999, "layers": []}')
    writer.close()
    local = Local(tmp_path)
    assert local.get("/story", run="run").status_code == 200
    assert local.get("/view", run="run", optimizer=0).status_code == 200


def test_a_large_run_that_is_being_read_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    for name in ("large", "small"):
        writer = synthetic.Writer(tmp_path / name)
        for tick in range(20):
            writer.window(tick, np.arange(19.0) + tick)
        writer.close()
    local, reading, done = Local(tmp_path), threading.Event(), threading.Event()
    data = local.plugin._reader.data
    read = data.read_tensors

    def slow(context: Any, *, run_tag_filter: Any, **more: Any) -> Any:
        if "large" in run_tag_filter.runs:
            reading.set()
            assert done.wait(20.0)
        return read(context, run_tag_filter=run_tag_filter, **more)

    data.read_tensors = slow
    other = threading.Thread(target=lambda: local.get("/story", run="large"))
    other.start()
    try:
        assert reading.wait(20.0)
        answers: list[int] = []
        small = threading.Thread(target=lambda: answers.append(local.get("/story", run="small").status_code))
        small.start()
        small.join(SECONDS)
        assert answers == [200]
    finally:
        done.set()
        other.join()
        small.join()


def test_many_windows_that_do_not_fit_many_names(tmp_path: Path) -> None:
    path = tmp_path / "gradguard.jsonl"
    names = [f"l{i}" for i in range(40_000)]
    lines = [json.dumps({"event": "layers", "optimizer": 0, "names": names})]
    lines += [json.dumps({"event": "window", "optimizer": 0, "layer_peaks": [1.0]})] * 400
    path.write_text("\n".join(lines) + "\n")
    begun = time.monotonic()
    assert read_journal(path).unreadable == 400
    assert time.monotonic() - begun < SECONDS


def test_a_line_without_an_end_is_left_out_and_what_follows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reader, "LONGEST_LINE", 2**16)
    journal = Journal(tmp_path)
    journal.window(window(0))
    journal.close()
    with open(journal.path, "ab") as file:
        file.write(b"[" * 2**20 + b"\n")
    journal = Journal(tmp_path)
    journal.incident(incident(), "opened")
    journal.close()
    contents = read_journal(journal.path)
    assert [problem.reason for problem in contents.problems] == ["is longer than 65,536 bytes"]
    assert len(contents.incidents) == 1


def test_an_endless_line_is_neither_kept_nor_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "gradguard.jsonl"
    with open(path, "wb") as file:
        file.truncate(10 * journal_reader.LONGEST_LINE)
    tracemalloc.start()
    begun = time.monotonic()
    try:
        contents = read_journal(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begun < SECONDS
    assert contents.unreadable == 1 and contents.problems[0].reason.startswith("is longer than")
    assert most < 4 * journal_reader.LONGEST_LINE


@pytest.mark.parametrize("key", ["step", "number", "closed"])
def test_a_number_of_400_digits_is_no_step(tmp_path: Path, key: str) -> None:
    journal = Journal(tmp_path)
    journal.window(window(0))
    journal.incident(incident(), "opened")
    journal.close()
    (line,) = [one for one in map(json.loads, journal.path.read_text().splitlines()) if "incident" in one]
    line["incident"][key] = 10**400
    with open(journal.path, "a") as file:
        file.write(json.dumps(line) + "\n")
    contents = read_journal(journal.path)
    assert contents.unreadable == 1 and len(contents.incidents) == 1
    assert main(["report", str(tmp_path)]) == 3
