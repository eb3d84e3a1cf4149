"""FSDP2 with the CPU in a GPU's part: calm steps are judged late there too, and snapshots outlive a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gradguard import GradGuard, Policy, SnapshotStore
from tests.builders import mlp, spoil
from tests.strategies.ddp_on_a_device import recorded
from tests.strategies.ddp_scenarios import ADAM, SGD, Saves, collectives_of, data, scaled
from tests.strategies.fsdp_scenarios import Sharded, run

AT = 60
"""Step of the bad batch, in the middle of a calm run."""
FUSED = partial(torch.optim.AdamW, lr=0.01, fused=True)


def late(optimizer: Any, spoilt: Callable[[Any], Any] = lambda made: made, sick: int = -1) -> Any:
    def scenario(rank: int, root: Path) -> dict[str, Any]:
        guard = GradGuard()
        found, counted = recorded(guard), collectives_of(guard)
        mine = data(rank, AT + 20)
        ended = run(Sharded(mlp(norm=sick < 0), optimizer), spoilt(mine) if rank == sick else mine, root, guard)
        return ended | found | {"counted": counted}

    return scenario


def plain(optimizer: Any) -> Any:
    return lambda rank, root: run(Sharded(mlp(norm=True), optimizer), data(rank, AT + 20), root, None)


class Throws(Callback):
    """Throw all weights off before a step."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 45:
            for p in pl_module.parameters():
                p.mul_(100.0)


def damaged(rank: int, root: Path, *others: Any, load: Path | None = None, in_checkpoint: bool = True) -> Any:
    """Weights that are thrown off at step 45; the checkpoint is written in the incident that this opens."""
    guard = GradGuard(
        policy=Policy(patience=2),
        exclude=["reinitialize"],
        snapshots=SnapshotStore(in_checkpoint=in_checkpoint),
        journal=False,
    )
    made = data(rank, 90)
    made = made[47:] + made[:47] if load else made
    return run(Sharded(mlp(), ADAM), made, root, guard, Throws(), *others, load=load)


def resumed(rank: int, root: Path, in_checkpoint: bool) -> dict[str, Any]:
    file = root / f"in an incident {in_checkpoint}.ckpt"
    whole = damaged(rank, root, Saves(file, 47), in_checkpoint=in_checkpoint)
    saved = torch.load(file / "meta.pt", weights_only=False)["callbacks"]
    ((track,),) = (tuple(found["lanes"].values()) for key, found in saved.items() if "GradGuard" in key)
    again = damaged(rank, root, load=file, in_checkpoint=in_checkpoint)
    kept = [one["parameters"] for one in track["snapshots"]["kept"]]
    return again | {"whole": whole, "kept": kept, "open": track["incident"] is not None}


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain Adam": plain(ADAM),
    "guarded Adam": late(ADAM),
    "plain fused": plain(FUSED),
    "guarded fused": late(FUSED),
    "NaN": late(SGD, lambda made: spoil(made, AT), 1),
    "a large batch": late(partial(torch.optim.SGD, lr=1e-3), lambda made: scaled(made, AT, 1e4), 0),
    "resumed": partial(resumed, in_checkpoint=False),
    "resumed, exactly": partial(resumed, in_checkpoint=True),
}
