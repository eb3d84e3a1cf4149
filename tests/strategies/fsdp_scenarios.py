"""FSDP2 on two ranks: parameters, gradients and optimizer state are shards; each scenario returns them whole."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_gradguard import GradGuard, Policy
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.records import to_json
from lightning_gradguard.remedies import Augment, Regularize, Remedy, SwapActivation
from tests.builders import Net, loader, mlp, spoil, trainer
from tests.strategies.ddp_scenarios import ADAM, SGD, collectives_of, data, deep, scaled

HOT = partial(torch.optim.SGD, lr=2.0, momentum=0.9)
OPTIONAL = (Regularize, Augment, SwapActivation)
Make = Callable[[], Remedy]


def mirrored(batch: Any) -> Any:
    """Return a batch of the linear task with the other sign, which is of the same task; nothing is drawn."""
    return tree_map(torch.neg, batch)


Mirror = partial(Augment, transform=mirrored)


class Sharded(Net):
    """A module whose layers are sharded over both ranks; its loss can be multiplied on one of them."""

    def __init__(self, *args: Any, rank: int = 0, since: int = 0, until: int = 0, by: float = 1.0) -> None:
        super().__init__(*args)
        self.rank, self.since, self.until, self.by, self.done = rank, since, until, by, False

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if self.done:
            return
        self.done = True
        mesh = self.device_mesh["data_parallel"]
        for layer in self.network:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * self.by if self.global_rank == self.rank and self.since <= batch_idx < self.until else loss


class Damages(Callback):
    """Multiply one layer's weights before a step, when the optimizer has long had a state for them."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 45:
            pl_module.network[4].weight.mul_(1e4)


def whole(tensor: Any) -> Any:
    return tensor.full_tensor().detach().clone() if hasattr(tensor, "full_tensor") else tensor


def run(
    module: Sharded, batches: Any, root: Path, guard: GradGuard | None, *others: Callback, load: Path | None = None
) -> dict[str, Any]:
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo", timeout=timedelta(seconds=30)
    )
    callbacks = [*others, *([guard] if guard else [])]
    fit = trainer(root, strategy=strategy, devices=2, callbacks=callbacks, use_distributed_sampler=False)
    fit.fit(module, loader(batches), ckpt_path=load)
    state = fit.optimizers[0].state
    return {
        "weights": {name: whole(p) for name, p in module.named_parameters()},
        "optimizer": [{k: whole(v) for k, v in state[p].items()} for p in module.parameters() if p in state],
        "incidents": [to_json(i) for i in guard.incidents] if guard else [],
        "rates": module.rates,
        "activations": [type(layer).__name__ for layer in module.network],
        "steps": fit.global_step,
    }


def healthy(rank: int, root: Path, guarded: bool, optimizer: Any) -> dict[str, Any]:
    return run(Sharded(mlp(), optimizer), data(rank, 60), root, GradGuard() if guarded else None)


def counted(rank: int, root: Path) -> dict[str, Any]:
    guard = GradGuard()
    collectives = collectives_of(guard)
    return run(Sharded(mlp(), ADAM), data(rank, 60), root, guard) | {"collectives": collectives}


def nan_on(sick: int, rank: int, root: Path) -> dict[str, Any]:
    batches = data(rank)
    return run(Sharded(mlp(), SGD), spoil(batches, 20) if rank == sick else batches, root, GradGuard())


def without_that_batch(rank: int, root: Path) -> dict[str, Any]:
    batches = data(rank)
    return run(Sharded(mlp(), SGD), batches[:20] + batches[21:], root, None)


def corrupt_on(sick: int, rank: int, root: Path) -> dict[str, Any]:
    batches = data(rank, 70)
    return run(Sharded(mlp(), SGD), scaled(batches, 50, 1e4) if rank == sick else batches, root, GradGuard())


def clipped(rank: int, root: Path) -> dict[str, Any]:
    module = Sharded(mlp(), SGD, rank=1, since=50, until=51, by=1e3)
    return run(module, data(rank, 60), root, GradGuard())


def backing_off(rank: int, root: Path, *optional: Make) -> dict[str, Any]:
    """A rate that is a hundred times too high, until the trial of a lower one is nearly over."""
    return run(Sharded(mlp(), HOT), data(rank, 34), root, thrown_back_soon(*optional))


def thrown_back_soon(*optional: Make) -> GradGuard:
    remedies = [*default_remedies(), *(make() for make in optional)]
    return GradGuard(journal=False, remedies=remedies, policy=Policy(patience=2))


def bad_layer(rank: int, root: Path, *optional: Make) -> dict[str, Any]:
    remedies = [*default_remedies(), *(make() for make in optional)]
    guard = GradGuard(remedies=remedies, policy=Policy(max_skipped=10))
    return run(Sharded(deep(1e4), ADAM), data(rank, 40), root, guard)


def damaged(rank: int, root: Path, *optional: Make) -> dict[str, Any]:
    return run(Sharded(deep(1.0), ADAM), data(rank, 80), root, thrown_back_soon(*optional), Damages())


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain SGD": partial(healthy, guarded=False, optimizer=SGD),
    "guarded SGD": partial(healthy, guarded=True, optimizer=SGD),
    "plain Adam": partial(healthy, guarded=False, optimizer=ADAM),
    "guarded Adam": partial(healthy, guarded=True, optimizer=ADAM),
    "counted": counted,
    "NaN on rank 0": partial(nan_on, 0),
    "NaN on rank 1": partial(nan_on, 1),
    "never seen": without_that_batch,
    "corrupt on rank 1": partial(corrupt_on, 1),
    "clipped": clipped,
    "backing off": backing_off,
    "regularized": lambda rank, root: backing_off(rank, root, Regularize),
    "mixed up": lambda rank, root: backing_off(rank, root, Augment),
    "mirrored": lambda rank, root: backing_off(rank, root, Mirror),
    "all remedies": lambda rank, root: backing_off(rank, root, *OPTIONAL),
    "bad layer": bad_layer,
    "bad layer, swapped": lambda rank, root: bad_layer(rank, root, SwapActivation),
    "damaged layer": damaged,
    "damaged layer, swapped": lambda rank, root: damaged(rank, root, SwapActivation),
    "bad layer, all remedies": lambda rank, root: bad_layer(rank, root, *OPTIONAL),
}
