"""A bundle is written whole or not at all, for its owner only, and a disk that fails costs nothing but the bundle."""

from __future__ import annotations

import errno
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from lightning_gradguard.evidence.writer import Writer, write_whole


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_a_file_is_private_and_its_directory_too(tmp_path: Path) -> None:
    path = tmp_path / "evidence" / "one.pt"
    write_whole(path, {"x": torch.ones(2)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert names(path.parent) == ["one.pt"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        mock.patch("torch.save", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises(OSError, match="No space"),
    ):
        write_whole(tmp_path / "one.pt", {})
    assert names(tmp_path) == []


def test_what_fails_in_the_background_is_told_in_the_training_thread() -> None:
    told: list[Exception] = []
    writer = Writer(told.append)
    writer.start(lambda: (_ for _ in ()).throw(OSError("full")))
    assert writer.wait() and [str(error) for error in told] == ["full"]


KILLED = """
import sys, torch
from pathlib import Path
from lightning_gradguard.evidence.writer import write_whole
while True:
    write_whole(Path(sys.argv[1]) / "one.pt", {"x": torch.zeros(2_000_000)})
    print("written", flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_half_bundle(tmp_path: Path) -> None:
    for moment in (0.0, 0.003, 0.007, 0.013, 0.02):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole: dict[str, Any] = torch.load(tmp_path / "one.pt", weights_only=True)
        assert whole["x"].shape == (2_000_000,)
        assert [name for name in names(tmp_path) if not name.startswith(".")] == ["one.pt"]
    write_whole(tmp_path / "two.pt", {})
    assert sorted(names(tmp_path)) == ["one.pt", "two.pt"], "what was half written is gone"


def test_what_a_process_that_lives_is_writing_stays(tmp_path: Path) -> None:
    halves = [f".one.pt.{platform.node()}.{os.getpid()}.half", ".one.pt.elsewhere.1.half"]
    for name in halves:
        (tmp_path / name).touch()
    write_whole(tmp_path / "two.pt", {})
    assert sorted(names(tmp_path)) == sorted([*halves, "two.pt"])
