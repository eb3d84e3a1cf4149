"""What happens to one of two ranks, or to both, under DDP; each scenario returns what its rank ended with."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradguard import GradGuard, Policy, SnapshotStore
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.records import Window, to_json
from lightning_gradguard.remedies import Augment, Regularize, SwapActivation
from lightning_gradguard.witnesses import RouterLoad
from tests.builders import Net, frozen_copy, loader, mlp, regression, spoil, trainer

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
SIZE = int(os.environ.get("WORLD_SIZE", "2"))
MID = 12
"""Step in the middle of a trial."""
Batch = tuple[Tensor, Tensor]


class Louder(Net):
    """A module whose loss is multiplied on one rank, from some step on."""

    def __init__(self, *args: Any, rank: int, since: int, by: float, until: int = 10**9) -> None:
        super().__init__(*args)
        self.rank, self.since, self.until, self.by = rank, since, until, by

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * self.by if self.global_rank == self.rank and self.since <= batch_idx < self.until else loss


class Collectives(TorchDispatchMode):
    """Count the collectives that are begun inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # What it is made of comes by next, its collectives among it.
        self.count += "c10d" in func.namespace and not any(aside in func.__name__ for aside in ("wait", "wrap"))
        return func(*args, **(kwargs or {}))


def collectives_of(guard: GradGuard) -> list[int]:
    """Return a list that will hold how many collectives each step's judgement has cost."""
    counts: list[int] = []
    judge = guard.guard.before_step

    def counting(*args: Any, **kwargs: Any) -> Any:
        with Collectives() as found:
            report = judge(*args, **kwargs)
        counts.append(found.count)
        return report

    guard.guard.before_step = counting  # type: ignore[method-assign]
    return counts


class Saves(Callback):
    """Save a checkpoint after some steps; once the next batch is there, since older Lightnings count a batch late."""

    def __init__(self, file: Path, step: int = 51) -> None:
        self.file, self.step = file, step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


class Shifted(Net):
    """A module whose loss leaps on one rank by a number, which changes no gradient, and is multiplied besides."""

    def __init__(self, *args: Any, rank: int, since: int, by: float, times: float = 1.0) -> None:
        super().__init__(*args)
        self.rank, self.since, self.by, self.times = rank, since, by, times

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return self.times * loss + self.by if self.global_rank == self.rank and batch_idx >= self.since else loss


def data(rank: int, count: int = 40) -> list[Batch]:
    """Return batches that differ between the ranks, of one task."""
    return regression(SIZE * count)[rank::SIZE]


def scaled(batches: list[Batch], index: int, by: float) -> list[Batch]:
    return [(x * by if i == index else x, y) for i, (x, y) in enumerate(batches)]


def run(module: Net, batches: list[Batch], root: Path, guard: GradGuard | None, **options: Any) -> dict[str, Any]:
    """Train on all processes; return how this one ended."""
    save, load = options.pop("save", None), options.pop("load", None)
    more = {name: options.pop(name) for name in ("accumulate_grad_batches", "enable_checkpointing") if name in options}
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=30), **options)
    callbacks: list[Callback] = [guard] if guard else []
    callbacks += [save] if save else []
    fit = trainer(root, strategy=strategy, callbacks=callbacks, devices=SIZE, use_distributed_sampler=False, **more)
    fit.fit(module, loader(batches), ckpt_path=load)
    ended: dict[str, Any] = {"end": frozen_copy(fit), "steps": fit.global_step, "incidents": []}
    if guard is not None:
        ended["incidents"] = [to_json(i) for i in guard.incidents]
        ended["rates"] = module.rates
        ended["learned"] = guard.state_dict()
    return ended


def quick() -> Policy:
    return Policy(patience=1)


def healthy(rank: int, root: Path, guarded: bool, norm: bool, optimizer: Any, **options: Any) -> dict[str, Any]:
    return run(Net(mlp(norm=norm), optimizer), data(rank, 60), root, GradGuard() if guarded else None, **options)


def watched(rank: int, root: Path) -> dict[str, Any]:
    """A healthy run with hooks on its first layer, as if that were a router."""
    seen: list[str] = []

    class Windows(Sink):
        def window(self, window: Window) -> None:
            seen.extend(told.witness for told in window.witnessed)

    guard = GradGuard(witnesses=[RouterLoad(modules=["network.0"])], log_every=5)
    guard.guard.sinks.append(Windows())
    module = Net(mlp(), ADAM)
    ended = run(module, data(rank, 60), root, guard)
    return ended | {"seen": seen, "hooks": [hook for child in module.modules() for hook in child._forward_hooks]}


def counted(rank: int, root: Path) -> dict[str, Any]:
    guard = GradGuard()
    collectives = collectives_of(guard)
    return run(Net(mlp(), ADAM), data(rank, 60), root, guard) | {"collectives": collectives}


def nan_on(sick: int, norm: bool, rank: int, root: Path, **options: Any) -> dict[str, Any]:
    batches = data(rank)
    batches = spoil(batches, 20) if rank == sick else batches
    return run(Net(mlp(norm=norm), SGD), batches, root, GradGuard(), **options)


def without_that_batch(norm: bool, rank: int, root: Path) -> dict[str, Any]:
    batches = data(rank)
    return run(Net(mlp(norm=norm), SGD), batches[:20] + batches[21:], root, None)


def corrupt_on(sick: int, rank: int, root: Path) -> dict[str, Any]:
    # Late enough for three batches to have been seen in health.
    batches = data(rank, 70)
    return run(Net(mlp(), SGD), scaled(batches, 50, 1e4) if rank == sick else batches, root, GradGuard())


def nan_in_the_first_steps(rank: int, root: Path) -> dict[str, Any]:
    batches = data(rank)
    return run(Net(mlp(), SGD), spoil(batches, 0, 1) if rank == 1 else batches, root, GradGuard())


def deep(scale: float) -> nn.Sequential:
    torch.manual_seed(5)
    layers = [m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())]
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *layers, nn.Linear(16, 1))
    with torch.no_grad():
        network[4].weight.mul_(scale)
    return network


def bad_layer(rank: int, root: Path) -> dict[str, Any]:
    return run(Net(deep(1e6), ADAM), data(rank, 60), root, GradGuard())


def bad_layer_with_all_remedies(rank: int, root: Path) -> dict[str, Any]:
    remedies = [*default_remedies(), Regularize(), Augment(), SwapActivation()]
    return run(Net(deep(1e6), ADAM), data(rank, 60), root, GradGuard(remedies=remedies))


def leaping(rank: int, root: Path) -> dict[str, Any]:
    # A leap asks for an examination of the layers, in which all ranks must join.
    module = Shifted(mlp(), SGD, rank=1, since=200, by=3.0)
    return run(module, [*data(rank, 60)] * 6, root, GradGuard())


def backing_off(rank: int, root: Path, *, save: Any = None, load: Any = None) -> dict[str, Any]:
    """A rate that is a hundred times too high: a bad start of both ranks, put on trial."""
    batches, hot = data(rank, 150), partial(torch.optim.SGD, lr=2.0, momentum=0.9)
    # A resumed epoch goes on counting, but its loader begins anew.
    batches = batches[MID:] + batches[:MID] if load else batches
    return run(Net(mlp(), hot), batches, root, GradGuard(), save=save, load=load)


def hopeless(rank: int, root: Path) -> dict[str, Any]:
    module = Louder(mlp(), ADAM, rank=0, since=30, by=math.nan)
    return run(module, data(rank, 80), root, GradGuard(policy=Policy(max_skipped=8, max_trials=2, patience=1)))


def no_memory(rank: int, root: Path) -> dict[str, Any]:
    """One rank has no memory for a snapshot; then neither may go back to one."""
    guard = GradGuard(policy=Policy(patience=2))
    if rank == 1:
        guard.guard._parts.snapshots.take = _fails  # type: ignore[method-assign]
    module = Louder(mlp(), ADAM, rank=1, since=45, by=1e4, until=49)
    return run(module, data(rank, 60), root, guard)


def resumed(rank: int, root: Path) -> dict[str, Any]:
    """Stop in the middle of a trial, and go on from the checkpoint."""
    file = root / "resumed.ckpt"
    backing_off(rank, root, save=Saves(file, MID))
    state = torch.load(file, weights_only=False)["callbacks"]
    trials = [track["trial"] for found in state.values() for track in found["lanes"].values()]
    return backing_off(rank, root, load=file) | {"trials": trials}


def late(rank: int, root: Path, *, save: Any = None, load: Any = None) -> dict[str, Any]:
    """Calm until after the checkpoint at step 54, between two exchanges of losses; then one rank diverges."""
    module = Shifted(mlp(), partial(torch.optim.SGD, lr=1e-3), rank=1, since=90, by=200.0, times=9.0)
    # A resumed epoch goes on counting, but its loader begins anew.
    batches = data(rank, 160)
    batches = batches[54:] + batches[:54] if load else batches
    guard = GradGuard(policy=quick(), snapshots=SnapshotStore(in_checkpoint=True))
    return run(module, batches, root, guard, save=save, load=load)


def resumed_in_calm(rank: int, root: Path) -> dict[str, Any]:
    file = root / "calm.ckpt"
    late(rank, root, save=Saves(file, 54))
    return late(rank, root, load=file)


def accumulating(guarded: bool, bad: bool, rank: int, root: Path) -> dict[str, Any]:
    """Two batches a step; the first goes backward under ``no_sync``. A bad batch costs its step, of both batches."""
    batches = data(rank, 80)
    if not bad:
        batches = batches[:20] + batches[22:]
    elif rank == 1:
        batches = spoil(batches, 20)
    guard = GradGuard() if guarded else None
    return run(Net(mlp(), SGD), batches, root, guard, accumulate_grad_batches=2)


def _fails(*_: Any) -> None:
    raise MemoryError("for a test")


def only_on(sick: int, rank: int, root: Path) -> dict[str, Any]:
    """A parameter that one rank alone uses, and a NaN on the other."""
    module = Sometimes(mlp(), SGD, rank=1 - sick)
    batches = data(rank)
    return run(module, spoil(batches, 20) if rank == sick else batches, root, GradGuard(), find_unused_parameters=True)


def healthy_unused(guarded: bool, rank: int, root: Path) -> dict[str, Any]:
    module = Sometimes(mlp(), SGD, rank=1)
    return run(module, data(rank), root, GradGuard() if guarded else None, find_unused_parameters=True)


class Sometimes(Net):
    """A module with a head that one rank alone uses."""

    def __init__(self, network: nn.Module, optimizer: Any, *, rank: int) -> None:
        super().__init__(network, optimizer)
        self.rank, self.head = rank, nn.Linear(1, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = self.network(batch[0])
        x = self.head(x) if self.global_rank == self.rank else x
        return nn.functional.mse_loss(x, batch[1])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain": partial(healthy, guarded=False, norm=False, optimizer=ADAM),
    "guarded": partial(healthy, guarded=True, norm=False, optimizer=ADAM),
    "plain with BatchNorm": partial(healthy, guarded=False, norm=True, optimizer=SGD),
    "guarded with BatchNorm": partial(healthy, guarded=True, norm=True, optimizer=SGD),
    "plain static graph": partial(healthy, guarded=False, norm=False, optimizer=SGD, static_graph=True),
    "guarded static graph": partial(healthy, guarded=True, norm=False, optimizer=SGD, static_graph=True),
    "NaN static graph": partial(nan_on, 1, False, static_graph=True),
    "counted": counted,
    "watched": watched,
    "NaN on rank 0": partial(nan_on, 0, False),
    "NaN on rank 1": partial(nan_on, 1, False),
    "never seen": partial(without_that_batch, False),
    "NaN with BatchNorm": partial(nan_on, 1, True),
    "never seen with BatchNorm": partial(without_that_batch, True),
    "corrupt on rank 0": partial(corrupt_on, 0),
    "corrupt on rank 1": partial(corrupt_on, 1),
    "NaN in the first steps": nan_in_the_first_steps,
    "bad layer": bad_layer,
    "bad layer, all remedies": bad_layer_with_all_remedies,
    "leaping": leaping,
    "backing off": backing_off,
    "hopeless": hopeless,
    "no memory on rank 1": no_memory,
    "resumed": resumed,
    "unused parameters": partial(only_on, 0),
    "plain unused parameters": partial(healthy_unused, False),
    "guarded unused parameters": partial(healthy_unused, True),
    "plain accumulating": partial(accumulating, False, False),
    "guarded accumulating": partial(accumulating, True, False),
    "NaN accumulating": partial(accumulating, True, True),
    "late": late,
    "resumed in calm": resumed_in_calm,
}
