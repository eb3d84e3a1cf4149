"""Small things that many tests build: statistics of a step, taught baselines, contexts, Trainers."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import Decision, GradientStatistics, Verdict
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.snapshots import SnapshotStore
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.statistics.norms import global_norm, gradient_norms

SAFELY: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(Trainer.fit).parameters else {}
"""How ``Trainer.fit`` is told to load a checkpoint without executing anything, where this Lightning can be told."""


def statistics(norm: float, *, step: int = 0, loss: float | None = None, **more: Any) -> GradientStatistics:
    """Return the statistics of a step whose single gradient has this norm."""
    return GradientStatistics(
        step=step, names=("layer.weight",), norms=np.array([norm], dtype=np.float64), norm=norm, loss=loss, **more
    )


def taught(norms: Iterable[float], losses: Iterable[float] | None = None) -> Baseline:
    """Return a baseline that has accepted these norms."""
    baseline = Baseline()
    values = list(norms)
    for norm, loss in zip(values, losses if losses is not None else [None] * len(values), strict=True):
        baseline.accept(norm, loss)
    return baseline


def calm(count: int = 100, *, level: float = 1.0, spread: float = 0.2, seed: int = 0) -> list[float]:
    """Return log-normal norms, as healthy training shows them."""
    return (level * np.exp(spread * np.random.default_rng(seed).standard_normal(count))).tolist()


def through_a_file(state: Any) -> Any:
    """Return ``state`` as a checkpoint that is loaded safely would give it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Compare nested states bit by bit; a NaN equals itself."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_sparse and b.is_sparse:
            a, b = a.to_dense(), b.to_dense()
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def context_for(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    decision: Decision | None = None,
    snapshots: SnapshotStore | None = None,
    **more: Any,
) -> RemedyContext:
    """Return the context of a step of ``module`` with the gradients that it has now."""
    parameters = dict(module.named_parameters())
    optimizer = optimizer or torch.optim.SGD(list(parameters.values()), lr=0.1)
    held = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norms = gradient_norms(list(held.values())).double().numpy()
    norms = norms / more.get("grad_scale", 1.0)
    measured = GradientStatistics(more.pop("step", 0), tuple(held), norms, global_norm(norms))
    return RemedyContext(
        module=module,
        optimizer=optimizer,
        parameters=parameters,
        snapshots=snapshots or SnapshotStore(),
        running=more.pop("running", None) or RunningStatistics(module),
        statistics=measured,
        verdict=Verdict("sudden", "test", measured.norm, 1.0, "for a test"),
        decision=decision or Decision(("clip",), "for a test"),
        **more,
    )


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Ready-made batches; take them with ``DataLoader(batches, batch_size=None)``."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index]


def loader(batches: Sequence[tuple[Tensor, Tensor]]) -> DataLoader[Any]:
    """Return a loader that yields the batches in order."""
    return DataLoader(Batches(batches), batch_size=None)


def regression(count: int, *, size: int = 8, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return batches of a linear task with eight features."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(8, 1, generator=generator)
    inputs = [torch.randn(size, 8, generator=generator) for _ in range(count)]
    return [(x, x @ weights) for x in inputs]


def spoil(
    batches: Sequence[tuple[Tensor, Tensor]], *indices: int, value: float = math.nan
) -> list[tuple[Tensor, Tensor]]:
    """Return the batches with one input element of some of them set to ``value``."""
    made = [(x.clone(), y) for x, y in batches]
    for index in indices:
        made[index][0].view(-1)[3] = value
    return made


class Net(LightningModule):
    """A module of Lightning's whose network, optimizer and scheduler are given."""

    def __init__(self, network: nn.Module, optimizer: Any, scheduler: Any = None, *, interval: str = "step") -> None:
        super().__init__()
        self.network = network
        self.make_optimizer, self.make_scheduler, self.interval = optimizer, scheduler, interval
        self.rates: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.network(x).to(y.dtype), y)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rates += [float(group["lr"]) for o in self.trainer.optimizers for group in o.param_groups]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval, "monitor": "watched"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def mlp(*, norm: bool = False, seed: int = 3) -> nn.Sequential:
    """Return a small network, the same every time."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 1))


def trainer(root: Any, **options: Any) -> Trainer:
    """Return a quiet Trainer on one CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(root),
    }
    return Trainer(**{**defaults, **options})


def frozen_copy(trainer: Trainer) -> dict[str, Any]:
    """Return the weights, buffers and optimizer states at the end of a run."""
    assert trainer.lightning_module is not None
    weights = {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}
    return {"weights": weights, "optimizers": [o.state_dict()["state"] for o in trainer.optimizers]}
