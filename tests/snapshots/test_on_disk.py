"""The last checkpoint on disk as a snapshot: only a whole, good one that nobody has changed since."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_gradguard import GradGuard, Policy
from lightning_gradguard.snapshots import store
from lightning_gradguard.snapshots.budget import Keeping
from tests.builders import Net, loader, mlp, regression, same, trainer

SAVED, TROUBLE = 20, 45


class Damaged(Net):
    """A module whose weights are thrown off before a step, once."""

    @torch.no_grad()
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == TROUBLE:
            for p in self.parameters():
                p.mul_(100.0)


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "left", lambda: 0.0)


def fit(
    root: Path, module: Net, *more: Callback, count: int = 60, every: int = SAVED, ckpt: Any = None, meddle: Any = None
) -> tuple[GradGuard, Any]:
    guard = GradGuard(policy=Policy(patience=2), exclude=["reinitialize"], journal=False)
    kept: dict[str, Any] = {}

    def watch(*_: Any) -> None:
        (track,) = guard.guard._tracks
        kept["store"] = track.snapshots
        if meddle is not None and track.steps == TROUBLE - 2:
            meddle(track.snapshots._kept)

    inner = guard.on_train_batch_end
    guard.on_train_batch_end = lambda *args: (inner(*args), watch())[0]  # type: ignore[method-assign]
    saver = ModelCheckpoint(root, every_n_train_steps=every, save_top_k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(root, callbacks=[guard, saver, *more], enable_checkpointing=True)
        run.fit(module, loader(regression(count)), ckpt_path=ckpt)
    return guard, kept["store"]


def went_back(guard: GradGuard) -> list[int]:
    outcomes = [o for i in guard.incidents for a in i.actions for o in a.outcomes if o.remedy == "rollback"]
    return [o.back_to for o in outcomes if o.applied and o.back_to is not None]


def test_a_run_without_memory_goes_back_to_its_last_checkpoint(tmp_path: Path) -> None:
    module = Damaged(mlp(norm=True), torch.optim.AdamW)
    guard, kept = fit(tmp_path, module)
    assert kept.keeping is Keeping.DISK
    assert went_back(guard) == [2 * SAVED]
    assert all(bool(p.isfinite().all()) and float(p.abs().max()) < 50.0 for p in module.parameters())


def test_it_reads_weights_buffers_and_the_optimizer_s_state(tmp_path: Path) -> None:
    module = Net(mlp(norm=True), torch.optim.AdamW)
    _, kept = fit(tmp_path, module, count=SAVED + 1)
    # One step was made after the checkpoint.
    saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=False)
    found = kept._kept[-1].snapshot() if kept._kept else None
    assert found is not None and found.number == SAVED == found.step
    assert same(found.parameters, {name: saved["state_dict"][name] for name, _ in module.named_parameters()})
    assert same(found.buffers, {name: saved["state_dict"][name] for name, _ in module.named_buffers()})
    assert same(list(found.optimizer_state.values()), list(saved["optimizer_states"][0]["state"].values()))


@pytest.mark.parametrize("how", ["gone", "another", "cut off"])
def test_a_file_that_is_not_what_it_was_is_no_snapshot_and_costs_no_run(tmp_path: Path, how: str) -> None:
    def meddle(kept: list[Any]) -> None:
        path = Path(kept[-1].path)
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: 1000 if how == "cut off" else None] + b"x" * (how == "another"))

    guard, kept = fit(tmp_path, Damaged(mlp(norm=True), torch.optim.AdamW), meddle=meddle)
    assert guard.incidents and went_back(guard) == []
    assert kept.latest is None


def test_a_checkpoint_that_was_written_in_an_incident_is_none_to_go_back_to(tmp_path: Path) -> None:
    class Late(Damaged):
        """Thrown off right before a checkpoint is written, so that this is one of the trouble."""

        @torch.no_grad()
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx + TROUBLE - (2 * SAVED - 1))

    guard, _ = fit(tmp_path, Late(mlp(norm=True), torch.optim.AdamW))
    assert guard.incidents[0].step == 2 * SAVED - 1
    # The one before is gone, as only one is kept.
    assert went_back(guard) == []


class SavesInTheIncident(Callback):
    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == TROUBLE + 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "in the incident.ckpt")


def test_a_checkpoint_of_an_incident_refers_to_the_last_good_one(tmp_path: Path) -> None:
    fit(tmp_path, Damaged(mlp(norm=True), torch.optim.AdamW), SavesInTheIncident(), count=TROUBLE + 5)
    written = tmp_path / "in the incident.ckpt"
    saved = torch.load(written, weights_only=False)["callbacks"]
    (state,) = (found for key, found in saved.items() if "GradGuard" in key)
    track = state["lanes"]["0"]
    assert track["incident"] is not None and track["snapshots"]["kept"] == []
    assert torch.load(track["snapshots"]["on_disk"], weights_only=False)["global_step"] == 2 * SAVED
    # Another checkpoint callback than that of the first run: none that still knows what was written.
    module = Net(mlp(norm=True), torch.optim.AdamW)
    _, kept = fit(tmp_path / "resumed", module, count=TROUBLE + 5, every=10**6, ckpt=written)
    assert kept.latest is not None and kept.latest.step == 2 * SAVED
