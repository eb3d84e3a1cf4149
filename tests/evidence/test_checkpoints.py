"""The last healthy checkpoint stands safe, and a directory tells which are to be trusted."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_gradguard.evidence.checkpoints import HEALTHY_NAME, HealthyCopy, Mark, list_checkpoints


def save(path: Path, mark: Mark | None, value: float = 0.0) -> Path:
    torch.save({"w": torch.tensor([value])} | ({} if mark is None else {"gradguard": mark.plain()}), path)
    return path


def test_a_checkpoint_is_healthy_once_the_step_after_it_was_fine(tmp_path: Path) -> None:
    copy, healthy = HealthyCopy(), tmp_path / HEALTHY_NAME
    first = save(tmp_path / "step=1.ckpt", Mark(True, 1), 1.0)
    copy.saved(first)
    first.unlink()  # Rotated away before the verdict.
    assert not healthy.exists()
    copy.judged(healthy=True)
    assert torch.load(healthy, weights_only=True)["w"].item() == 1.0
    copy.saved(save(tmp_path / "step=2.ckpt", Mark(True, 2), 2.0))
    copy.judged(healthy=False)
    assert torch.load(healthy, weights_only=True)["w"].item() == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == [HEALTHY_NAME, "step=2.ckpt"]


def test_a_sharded_checkpoint_is_linked_file_by_file(tmp_path: Path) -> None:
    sharded = tmp_path / "step=3.ckpt"
    sharded.mkdir()
    (sharded / ".metadata").write_text("m")
    (sharded / "part").write_text("p")
    copy = HealthyCopy()
    for _ in range(2):
        copy.saved(sharded)
        copy.judged(healthy=True)
    assert (tmp_path / HEALTHY_NAME / "part").read_text() == "p"
    assert (tmp_path / HEALTHY_NAME / "part").stat().st_ino == (sharded / "part").stat().st_ino


def test_a_missing_checkpoint_is_no_trouble(tmp_path: Path) -> None:
    copy = HealthyCopy()
    copy.saved(tmp_path / "none.ckpt")
    copy.judged(healthy=True)
    assert list(tmp_path.iterdir()) == []


def test_a_listing_tells_the_verdict_and_a_later_one_counts(tmp_path: Path) -> None:
    save(tmp_path / "b.ckpt", Mark(False, 20, "incident 1 is open", 1))
    save(tmp_path / "a.ckpt", Mark(True, 10))
    save(tmp_path / "c.ckpt", Mark(False, 30, "incident 2 is open", 2))
    save(tmp_path / "old.ckpt", None)
    (tmp_path / "torn.ckpt").write_text("no checkpoint")
    told = [{"path": "/elsewhere/c.ckpt", "step": 30, "healthy": True, "reason": "incident 2 ended: calm again"}]
    found = {one.path.name: one for one in list_checkpoints(tmp_path, told)}
    assert list(found)[:3] == ["a.ckpt", "b.ckpt", "c.ckpt"]
    assert {name: one.healthy for name, one in found.items()} == {
        "a.ckpt": True,
        "b.ckpt": False,
        "c.ckpt": True,
        "old.ckpt": None,
        "torn.ckpt": None,
    }
    assert found["c.ckpt"].later and not found["b.ckpt"].later
