"""A disk that fails in mid-run: training ends as it would have, the sink is switched off, and one warning tells."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_gradguard import GradGuard
from lightning_gradguard.diagnostics import read_journal
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer
from tests.faults.processes import run
from tests.faults.victims import ADAMW, At, open_files, quiet

STEPS = 60


def fit(root: Path, *callbacks: Callback, logger: Any = False, guarded: bool = True) -> tuple[Any, list[str]]:
    """Train a run that loses one batch early and one late; return how it ended and what the guard warned of."""
    guards = [GradGuard(log_every=5)] if guarded else []
    fit = trainer(root, callbacks=[*callbacks, *guards], logger=logger)
    batches = regression(STEPS)
    batches = spoil(batches, 10, 50) if guarded else [b for i, b in enumerate(batches) if i not in (10, 50)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Net(mlp(norm=True), ADAMW), loader(batches))
    for guard in guards:
        assert [incident.step for incident in guard.incidents] == [10, 50]
    return frozen_copy(fit), [str(w.message) for w in caught if "GradGuard" in str(w.message)]


def board(root: Path) -> TensorBoardLogger:
    return TensorBoardLogger(root, name="", version="")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How the same run ends without a guard and without the bad batches."""
    return fit(tmp_path_factory.mktemp("plain"), guarded=False)[0]


@pytest.mark.fault("disk full: the journal (ENOSPC)")
@pytest.mark.parametrize("with_board", [False, True])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_costs_the_journal_and_nothing_else(with_board: bool, undisturbed: Any, tmp_path: Path) -> None:
    # Every write to this device fails with "No space left on device".
    (tmp_path / "gradguard.jsonl").symlink_to("/dev/full")
    end, warned = fit(tmp_path, logger=board(tmp_path) if with_board else False)
    assert same(end, undisturbed)
    assert len(warned) == 1 and "Journal failed" in warned[0] and "No space left" in warned[0]
    assert not [file for file in open_files() if file == Path("/dev/full")], "a sink that failed is closed"


@pytest.mark.fault("disk full: a file-size limit in mid-run (EFBIG)")
@pytest.mark.parametrize("step", [5, 12, 30, 55])
def test_a_file_that_may_not_grow_costs_the_journal_and_nothing_else(
    step: int, undisturbed: Any, tmp_path: Path
) -> None:
    assert run(full_from, tmp_path, step) == 0
    found = torch.load(tmp_path / "end.pt", weights_only=True)
    assert same(found["end"], undisturbed)
    assert len(found["warned"]) == 1 and "Journal failed" in found["warned"][0]
    contents = read_journal(tmp_path / "gradguard.jsonl")
    assert contents.unreadable <= 1 and [i.step for i in contents.incidents] == [s for s in (10, 50) if s < step]


def full_from(root: Path, step: int) -> None:
    """Train in a process whose files may not grow from some step on."""
    quiet()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = root / "gradguard.jsonl"

    def fill(_: Any) -> None:
        size = path.stat().st_size if path.exists() else 0
        # Half a line still fits, so that the last one is torn.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100 if size else 0, limits[1]))

    end, warned = fit(root, At(step, fill))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    torch.save({"end": end, "warned": warned}, root / "end.pt")


@pytest.mark.fault("disk full: TensorBoard's file (ENOSPC)")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("step", [20, 58])
def test_a_full_disk_costs_the_board_and_nothing_else(step: int, undisturbed: Any, tmp_path: Path) -> None:
    def fill(trainer: Trainer) -> None:
        trainer.logger.experiment.flush()  # type: ignore[union-attr]
        (file,) = tmp_path.glob("events.out.tfevents.*")
        file.unlink()
        # TensorBoard opens its file for each event.
        file.symlink_to("/dev/full")

    end, warned = fit(tmp_path, At(step, fill), logger=board(tmp_path))
    assert same(end, undisturbed)
    assert len(warned) == 1 and "TensorBoardSink" in warned[0] and "No space left" in warned[0]
    assert [i.step for i in read_journal(tmp_path / "gradguard.jsonl").incidents] == [10, 50]


@pytest.mark.fault("log directory removed in mid-run")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("with_board", [False, True])
def test_a_log_directory_that_is_removed_costs_the_journal_and_nothing_else(
    with_board: bool, undisturbed: Any, tmp_path: Path
) -> None:
    root = tmp_path / "logs"
    end, warned = fit(root, At(30, lambda _: shutil.rmtree(root)), logger=board(root) if with_board else False)
    assert same(end, undisturbed)
    assert [w.split()[1] for w in sorted(warned)] == ["Journal", "TensorBoardSink"][: 1 + with_board]
    assert "removed in mid-run" in sorted(warned)[0]


CLOSINGS: dict[str, Callable[[Any], None]] = {
    "the event file": lambda writer: writer.file_writer.close(),
    "all writers": lambda writer: writer.close(),
}


@pytest.mark.fault("TensorBoard writer closed in mid-run")
@pytest.mark.parametrize("what", CLOSINGS)
def test_a_closed_writer_costs_the_board_and_nothing_else(what: str, undisturbed: Any, tmp_path: Path) -> None:
    end, warned = fit(
        tmp_path, At(30, lambda trainer: CLOSINGS[what](trainer.logger.experiment)), logger=board(tmp_path)
    )
    assert same(end, undisturbed)
    # A SummaryWriter that was closed as a whole opens another file at the next write, which is no failure.
    assert len(warned) == (what == "the event file") and all("TensorBoardSink failed" in w for w in warned)
    assert [i.step for i in read_journal(tmp_path / "gradguard.jsonl").incidents] == [10, 50]


@contextlib.contextmanager
def unwritable() -> Iterator[Path]:
    """A directory that one may look into and not write to; without the privileges of root, whom nothing stops."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "logs").mkdir()
    (root / "logs").chmod(0o555)
    yield root / "logs"
    (root / "logs").chmod(0o755)
    shutil.rmtree(root)


@pytest.mark.fault("read-only log directory")
def test_a_read_only_directory_costs_the_journal_and_nothing_else(undisturbed: Any, tmp_path: Path) -> None:
    with unwritable() as root:
        assert run(without_privileges, root, tmp_path / "end.pt") == 0
        assert list(root.iterdir()) == []
    found = torch.load(tmp_path / "end.pt", weights_only=True)
    assert same(found["end"], undisturbed)
    assert len(found["warned"]) == 1 and "Permission denied" in found["warned"][0]


def without_privileges(root: Path, result: Path) -> None:
    """Train as a user who may not write into ``root``."""
    quiet()
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    end, warned = fit(root)
    os.seteuid(before)
    torch.save({"end": end, "warned": warned}, result)
