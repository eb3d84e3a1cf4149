"""DDP on a host with little memory: one copy for both processes, the last checkpoint on disk, one that lacks it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gradguard import GradGuard, Policy
from lightning_gradguard.snapshots import store
from lightning_gradguard.snapshots.budget import UNKNOWN_STATE
from lightning_gradguard.step import copying, treating
from tests.builders import Net, mlp
from tests.strategies import ddp_on_a_device
from tests.strategies.ddp_scenarios import ADAM, data, run

TROUBLE = 45
SAVED = 40
"""Step of the checkpoint before the trouble."""
ONE = (1 + UNKNOWN_STATE) * sum(p.nbytes for p in mlp().parameters())
"""Bytes of a snapshot, but for counts of steps."""


class Damaged(Net):
    """A module whose weights are thrown off on all ranks, once."""

    @torch.no_grad()
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == TROUBLE:
            for p in self.parameters():
                p.mul_(100.0)


def starved(
    room: Callable[[int], float], *, saves: bool = False, fails: bool = False
) -> Callable[[int, Path], dict[str, Any]]:
    """Return a scenario in which snapshots may take so many times what one takes, by rank."""

    def scenario(rank: int, root: Path) -> dict[str, Any]:
        guard = GradGuard(policy=Policy(patience=2), exclude=["reinitialize"])
        found = ddp_on_a_device.recorded(guard)
        if fails and rank == 1:
            treating.captured = partial(_without_memory, copying.captured)
        left, store.left = store.left, lambda: 4 * ONE * room(rank)
        kept: dict[str, Any] = {}

        def watch(*_: Any, **__: Any) -> None:
            for track in guard.guard._tracks:
                kept["keeping"] = track.snapshots.keeping.name
                kept["shared"] = "memfd:gradguard" in Path("/proc/self/maps").read_text()
                kept["untreated"] = kept.get("untreated", False) or track.treatment.untreated is not None

        inner = guard.on_train_batch_end
        guard.on_train_batch_end = lambda *args: (inner(*args), watch())[0]  # type: ignore[method-assign]
        saver = ModelCheckpoint(root / "saved", every_n_train_steps=SAVED, save_top_k=1) if saves else None
        module = Damaged(mlp(), ADAM)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                ended = run(module, data(rank, 80), root, guard, save=saver, enable_checkpointing=saves)
            finally:
                store.left, treating.captured = left, copying.captured
        return ended | found | kept | {"told": [str(one.message) for one in told if "GradGuard" in str(one.message)]}

    return scenario


def _without_memory(captured: Any, run_: Any, track: Any) -> Any:
    """Let the copy before a treatment fail, and no other."""
    with mock.patch.object(type(track.snapshots), "capture", side_effect=MemoryError("for a test")):
        return captured(run_, track)


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "all": starved(lambda rank: 100.0),
    "one copy for both": starved(lambda rank: 3.0),
    "one lacks memory": starved(lambda rank: 3.0 if rank == 0 else 0.0),
    "on disk": starved(lambda rank: 0.0, saves=True),
    "on disk, nothing saved": starved(lambda rank: 0.0),
    "no memory before a treatment": starved(lambda rank: 100.0, fails=True),
}
