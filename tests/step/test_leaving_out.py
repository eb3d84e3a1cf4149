"""Batches that a run that died has accused are left out by the next, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, Guard, TrainingDiverged
from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.diagnostics.journal import FILE_NAME
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer

BAD = 23


def net() -> Net:
    torch.manual_seed(1)
    return Net(mlp(norm=True), lambda p: torch.optim.Adam(p, lr=0.01))


def batches(bad: int = BAD) -> list[Any]:
    torch.manual_seed(2)
    return spoil(regression(40), bad)


def run(path: Path, data: list[Any], **options: Any) -> tuple[GradGuard, dict[str, Any]]:
    guard = GradGuard(**options)
    fit = trainer(path, callbacks=[guard], max_epochs=2)
    fit.fit(net(), loader(data))
    return guard, frozen_copy(fit)


@pytest.fixture
def died(tmp_path: Path) -> Path:
    """The directory of a run that ended at its bad batch."""
    with pytest.raises(TrainingDiverged):
        run(tmp_path / "died", batches(), mode="halt")
    return tmp_path / "died"


def test_the_journal_knows_the_batch(died: Path) -> None:
    [accused] = read_journal(died / FILE_NAME).accused
    assert (accused.step, accused.epoch, accused.batch_index, accused.seen_by) == (BAD, 0, BAD, 0)
    assert accused.reason and len(accused.digest) == 16


@pytest.mark.parametrize("what", ["directory", "journal", "bundle"])
def test_its_step_is_not_made_again_and_no_incident_tells_of_it(died: Path, tmp_path: Path, what: str) -> None:
    bundle = next(died.rglob("*.gradguard.pt"))
    path = {"directory": died, "journal": died / FILE_NAME, "bundle": bundle}[what]
    # In the second epoch the batch comes at another place, which nobody has accused.
    data = batches()
    halting = {"mode": "halt", "skip_batches": path}
    with pytest.raises(TrainingDiverged):
        run(tmp_path / "next", data, **halting)
    [first, *rest] = read_journal(tmp_path / "next" / FILE_NAME).incidents
    assert (first.step, rest) == (40 + BAD, [])
    guard, _ = run(tmp_path / "third", data, mode="halt", skip_batches=tmp_path)
    assert guard.incidents == ()


def test_the_run_ends_as_if_the_step_had_been_skipped(died: Path, tmp_path: Path) -> None:
    left_out, expected = run(tmp_path / "a", batches(), skip_batches=died), run(tmp_path / "b", batches())
    assert same(left_out[1], expected[1])
    assert len(expected[0].incidents) == 1 + len(left_out[0].incidents)


def test_another_order_is_noticed_and_nothing_is_left_out(died: Path, tmp_path: Path) -> None:
    data = regression(40)
    with pytest.warns(RuntimeWarning, match=f"batch {BAD} of epoch 0 is not the one that was accused"):
        guard, ended = run(tmp_path / "a", data, skip_batches=died)
    assert guard.incidents == () and same(ended, run(tmp_path / "b", data)[1])


def test_every_optimizer_of_the_batch_and_all_of_its_micro_batches_are_left_out(died: Path) -> None:
    def train(guard: Guard, per_step: int) -> list[int]:
        torch.manual_seed(1)
        module = nn.ModuleList([mlp(), mlp()])
        guard.bind(module)
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in module]
        skipped = []
        for index, (x, y) in enumerate(batches()):
            guard.before_forward([x, y], index, 0)
            for part in module:
                nn.functional.mse_loss(part(x), y).backward()
            if (index + 1) % per_step == 0:
                reports = [guard.before_step(o, batch=(x, y), batch_index=index) for o in optimizers]
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                guard.after_step()
                skipped += [index for report in reports if report.skipped]
        assert guard.incidents == ()
        return skipped

    assert train(Guard(skip_batches=died), 1) == [BAD, BAD]
    # The accused one is the last but one of a step of five.
    assert train(Guard(skip_batches=died), 5) == [BAD + 1, BAD + 1]


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing at .*missing"):
        GradGuard(skip_batches=tmp_path / "missing")
    with pytest.raises(ValueError, match="skip_batches must be a path, not int"):
        GradGuard(skip_batches=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs mode 'guard' or 'halt'"):
        GradGuard(mode="watch", skip_batches=tmp_path)
    with pytest.raises(ValueError, match="a remedy that skips steps"):
        GradGuard(exclude=["skip"], skip_batches=tmp_path)
    with pytest.warns(RuntimeWarning, match="no batch is accused"):
        GradGuard(skip_batches=tmp_path)
    (tmp_path / "x.gradguard.pt").write_bytes(b"no bundle")
    with pytest.raises(ValueError, match="is no bundle that can be read"):
        GradGuard(skip_batches=tmp_path)
