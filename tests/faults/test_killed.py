"""SIGKILL at random moments: resumed from the last checkpoint, the run ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.records import to_json
from tests.builders import same
from tests.faults.processes import context, kill_after, run, started
from tests.faults.victims import EPOCH, EPOCHS, SICK, train

FEW, MANY = 2, 14
SNAPSHOTS = 3
"""Snapshots that the run takes."""
LONGEST = 0.006
"""Seconds between a mark and the kill at most: two to three steps, or one checkpoint."""
Ending = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ending:
    root = tmp_path_factory.mktemp("whole")
    assert run(train, root) == 0
    return ending(root)


def ending(root: Path) -> Ending:
    return torch.load(root / "end.pt", weights_only=True)


def kill(root: Path, mark: str, count: int, delay: float) -> bool:
    """Train until some moment after that ``mark``; return whether the process was killed before it had ended."""
    receive, send = context().Pipe(duplex=False)
    with started(train, root, send) as process:
        send.close()
        return kill_after(process, receive, mark, count, delay)


def check_journal(root: Path) -> None:
    """All can be read while the run lies dead, but for the line that a session was killed in."""
    path = root / "gradguard.jsonl"
    if path.exists():
        lines = path.read_bytes().splitlines()
        for problem in read_journal(path).problems:
            assert problem.line == len(lines) or b'{"event":"start"' in lines[problem.line]


def check_end(root: Path, whole: Ending) -> None:
    """The resumed run ended bit-identical, and the journal tells of every step and incident."""
    found = ending(root)
    assert found["steps"] == EPOCH * EPOCHS
    assert same(found["end"], whole["end"])
    assert same(found["guard"], whole["guard"])
    contents = read_journal(root / "gradguard.jsonl")
    covered = {step for w in contents.windows for step in range(w.first_step, w.step + 1)}
    assert covered == set(range(EPOCH * EPOCHS))
    assert [to_json(i) for i in sorted(contents.incidents, key=lambda i: i.number)] == whole["guard"]["incidents"]


@pytest.mark.parametrize("seed", [*range(FEW), *(pytest.param(i, marks=pytest.mark.slow) for i in range(FEW, MANY))])
@pytest.mark.parametrize(
    ("moment", "times"),
    [
        pytest.param("snapshot", SNAPSHOTS, marks=pytest.mark.fault("SIGKILL around a snapshot")),
        pytest.param("incident", len(SICK), marks=pytest.mark.fault("SIGKILL around an incident")),
        pytest.param("checkpoint", EPOCHS, marks=pytest.mark.fault("SIGKILL around a checkpoint")),
    ],
)
def test_a_killed_run_can_be_resumed(moment: str, times: int, seed: int, whole: Ending, tmp_path: Path) -> None:
    chance = random.Random(f"{moment} {seed}")
    assert kill(tmp_path, moment, chance.randint(1, times), chance.uniform(0.0, LONGEST))
    check_journal(tmp_path)
    assert run(train, tmp_path) == 0
    check_end(tmp_path, whole)


@pytest.mark.fault("SIGKILL again and again")
@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_a_run_that_is_killed_again_and_again_gets_to_its_end(seed: int, whole: Ending, tmp_path: Path) -> None:
    chance, killed = random.Random(seed), 0
    for step in sorted(chance.sample(range(EPOCH * EPOCHS), 6)):
        killed += kill(tmp_path, f"step {step}", 1, chance.uniform(0.0, LONGEST))
        check_journal(tmp_path)
    assert killed >= 3
    assert run(train, tmp_path) == 0
    check_end(tmp_path, whole)
