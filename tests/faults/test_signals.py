"""SIGTERM and Ctrl-C: whatever was changed for the run is put back before the process ends."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard.diagnostics import read_journal
from tests.builders import same
from tests.faults.processes import context, ended, run, started
from tests.faults.victims import interrupted, newest, train

SEEDS = [*range(2), *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 12))]


def interrupt(root: Path, number: int, seed: int) -> dict[str, Any]:
    """Send a signal after some step of the back-off; return what the process found when it was over."""
    chance = random.Random(seed)
    receive, send = context().Pipe(duplex=False)
    step, delay = chance.randint(46, 60), chance.uniform(0.0, 0.003)
    with started(interrupted, root, send) as process:
        send.close()
        while receive.recv() != f"step {step}":
            pass
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, number)
        ended(process)
    return torch.load(root / "interrupted.pt", weights_only=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("number", "error"),
    [
        pytest.param(signal.SIGTERM, "SIGTERMException", marks=pytest.mark.fault("SIGTERM")),
        pytest.param(signal.SIGINT, "SystemExit", marks=pytest.mark.fault("SIGINT (Ctrl-C)")),
    ],
)
def test_everything_is_put_back(number: int, error: str, seed: int, tmp_path: Path) -> None:
    found = interrupt(tmp_path, number, seed)
    assert found["error"] == error
    assert found["factor"] < 1.0, "the rate was backed off while the signal came"
    assert any(found["rates"] == pytest.approx([rate], rel=1e-12) for rate in found["schedule"])
    assert found["hooks"] == 0 and found["armed"] == ""
    assert found["open"] == []
    contents = read_journal(tmp_path / "gradguard.jsonl")
    assert contents.unreadable == 0
    # The window under way is written too.
    assert contents.windows[-1].step == found["steps"] - 1 or error == "SystemExit"


@pytest.mark.fault("SIGTERM, resumed from the checkpoint that it leaves")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_resumed_from_what_sigterm_left_ends_as_if_nothing_had_happened(seed: int, tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert run(train, tmp_path / "whole") == 0
    interrupt(tmp_path / "stopped", signal.SIGTERM, seed)
    assert newest(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoints" / "epoch=99.ckpt"
    assert run(train, tmp_path / "stopped") == 0
    whole, resumed = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "stopped"))
    for ended_as in (whole, resumed):
        # The window under way is written before the process ends, and the resumed run begins another one.
        ended_as["guard"]["lanes"]["0"].pop("meter")
    assert same(whole, resumed)
