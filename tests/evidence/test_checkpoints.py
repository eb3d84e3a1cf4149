"""Checkpoints are marked, the last healthy one stands safe, and a directory tells which are to be trusted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gradguard import GradGuard, TrainingDiverged
from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.evidence.checkpoints import list_checkpoints, mark, read_mark
from lightning_gradguard.evidence.healthy_copy import NAME, HealthyCopy
from lightning_gradguard.records import CheckpointRecord
from tests.builders import Net, loader, mlp, regression, trainer
from tests.replay.faults import Classifier, batches


def save(path: Path, record: CheckpointRecord | None, value: float = 0.0) -> Path:
    torch.save({"w": torch.tensor([value])} | ({} if record is None else {"gradguard": mark(record)}), path)
    return path


def value(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["w"])


def test_a_checkpoint_is_healthy_once_the_step_after_it_was_fine(tmp_path: Path) -> None:
    copy, healthy = HealthyCopy(), tmp_path / NAME
    first = save(tmp_path / "step=1.ckpt", None, 1.0)
    copy.saved(first)
    first.unlink()  # Rotated away before the verdict.
    copy.judged(healthy=True)
    assert not healthy.exists(), "nothing is shown where there is no trouble"
    copy.saved(save(tmp_path / "step=2.ckpt", None, 2.0))
    copy.judged(healthy=False)
    copy.show()
    assert value(healthy) == 1.0
    copy.saved(save(tmp_path / "step=3.ckpt", None, 3.0))
    copy.judged(healthy=True)
    assert value(healthy) == 3.0
    copy.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME, "step=2.ckpt", "step=3.ckpt"]


def test_a_sharded_checkpoint_is_linked_file_by_file(tmp_path: Path) -> None:
    sharded = tmp_path / "step=3.ckpt"
    sharded.mkdir()
    (sharded / ".metadata").write_text("m")
    (sharded / "part").write_text("p")
    copy = HealthyCopy()
    copy.show()
    for _ in range(2):
        copy.saved(sharded)
        copy.judged(healthy=True)
    assert (tmp_path / NAME / "part").read_text() == "p"
    assert (tmp_path / NAME / "part").stat().st_ino == (sharded / "part").stat().st_ino


def test_a_missing_checkpoint_is_no_trouble(tmp_path: Path) -> None:
    copy = HealthyCopy()
    copy.saved(tmp_path / "none.ckpt")
    copy.judged(healthy=True)
    copy.show()
    copy.close()
    assert list(tmp_path.iterdir()) == []


def test_a_listing_tells_the_verdict_and_a_later_one_counts(tmp_path: Path) -> None:
    save(tmp_path / "b.ckpt", CheckpointRecord("", 20, False, "incident 1 is open", 1))
    save(tmp_path / "a.ckpt", CheckpointRecord("", 10, True))
    save(tmp_path / "c.ckpt", CheckpointRecord("", 30, False, "incident 2 is open", 2))
    save(tmp_path / "old.ckpt", None)
    (tmp_path / "torn.ckpt").write_text("no checkpoint")
    told = [CheckpointRecord("/elsewhere/c.ckpt", 30, True, "incident 2 ended: calm again")]
    found = {one.path.name: one for one in list_checkpoints(tmp_path, told)}
    assert list(found)[:3] == ["a.ckpt", "b.ckpt", "c.ckpt"]
    verdicts = {name.partition(".")[0]: one.healthy for name, one in found.items()}
    assert verdicts == {"a": True, "b": False, "c": True, "old": None, "torn": None}
    assert found["c.ckpt"].later and not found["b.ckpt"].later
    assert str(found["b.ckpt"]).startswith("SUSPECT  step 20")


# -- in a run ----------------------------------------------------------------------------------------------------------


def trained(root: Path, bad: tuple[int, ...], **options: Any) -> Any:
    torch.manual_seed(0)
    made = batches()
    for index in bad:
        made[index][0][2, 1] = math.nan
    saving = ModelCheckpoint(
        dirpath=root / "kept", filename="{step}", every_n_train_steps=1, save_top_k=1, save_last=True
    )
    callbacks = [saving] if options.pop("unguarded", False) else [saving, GradGuard(**options)]
    fit = trainer(root, callbacks=callbacks, enable_checkpointing=True)
    fit.fit(Classifier(), loader(made))
    return fit


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "kept").iterdir())


def test_a_healthy_run_leaves_the_files_that_it_leaves_without_a_guard(tmp_path: Path) -> None:
    trained(tmp_path / "a", (), unguarded=True)
    trained(tmp_path / "b", ())
    assert names(tmp_path / "a") == names(tmp_path / "b") == ["last.ckpt", "step=60.ckpt"]
    inside = read_mark(tmp_path / "b" / "kept" / "last.ckpt")
    assert inside == {"healthy": True, "step": 60, "reason": "", "incident": None}


def test_a_run_that_is_halted_keeps_the_last_healthy_checkpoint(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(TrainingDiverged):
        trained(tmp_path, (40,), mode="halt")
    assert names(tmp_path) == [NAME, "last.ckpt", "step=40.ckpt"]
    # The weights of step 40 are those that the halted step would have been made from: nobody has spoken for them.
    assert torch.load(tmp_path / "kept" / NAME, weights_only=True)["global_step"] == 39
    capsys.readouterr()
    assert main(["checkpoints", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["healthy", "SUSPECT", "SUSPECT"]
    assert "incident 1 ended at step 40: the run was ended" in lines[-1]
    assert main(["report", str(tmp_path), "--no-html"]) == 0
    told = capsys.readouterr().out
    assert f"checkpoint: {tmp_path / 'kept' / NAME}, of step 39, is the newest that is healthy" in told
    assert "evidence: " in told


def test_what_is_saved_in_an_incident_is_marked_and_acquitted_when_it_is_calm_again(tmp_path: Path) -> None:
    trained(tmp_path, (30, 31))
    verdicts = read_journal(tmp_path / "gradguard.jsonl").checkpoints
    marked = [one for one in verdicts if not one.healthy]
    assert marked and {one.incident for one in marked} == {1}
    acquitted = {(one.path, one.step) for one in verdicts if one.healthy and one.incident == 1}
    assert {(one.path, one.step) for one in marked} == acquitted
    assert torch.load(tmp_path / "kept" / NAME, weights_only=True)["global_step"] == 60 - 1
    assert all(one.healthy for one in list_checkpoints(tmp_path, verdicts))


def test_a_journal_that_cannot_be_read_costs_no_listing(tmp_path: Path, capsys: Any) -> None:
    trained(tmp_path, ())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "gradguard.jsonl").symlink_to(tmp_path / "nowhere")
    assert main(["checkpoints", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("healthy") == 2


def test_nothing_is_listed_where_there_is_nothing(tmp_path: Path, capsys: Any) -> None:
    assert main(["checkpoints", str(tmp_path)]) == 1
    assert "no checkpoint below" in capsys.readouterr().err


def test_a_run_that_was_only_watched_has_no_healthy_checkpoint_after_what_called_for_a_treatment(
    tmp_path: Path,
) -> None:
    """A network that is dead raises no alarm any more, which speaks for nobody."""
    torch.manual_seed(0)
    module = Net(mlp(), lambda p: torch.optim.SGD(p, lr=30.0))
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=40, save_top_k=-1)
    guard = GradGuard(mode="watch", journal=False)
    trainer(tmp_path, callbacks=[guard, saves], enable_checkpointing=True).fit(module, loader(regression(120)))
    assert guard.incidents and any(len(a.decision.remedies) > 1 for i in guard.incidents for a in i.actions)
    found = list_checkpoints(tmp_path, [])
    assert [one.healthy for one in found] == [False] * len(found)
    assert any("only watched" in one.reason for one in found)
