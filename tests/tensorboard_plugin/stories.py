"""Small real runs under Lightning, each with one trouble, which tab, report and text must tell alike."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradguard import GradGuard

Spoil = Callable[[LightningModule, int, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Batches of a small regression that can be learned; the same for every run."""

    def __init__(self, batches: int, features: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        truth = torch.randn(features, 1, generator=generator)
        self._batches = []
        for _ in range(batches):
            x = torch.randn(16, features, generator=generator)
            self._batches.append((x, torch.tanh(x @ truth) + 0.05 * torch.randn(16, 1, generator=generator)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)


class Regression(LightningModule):
    """A residual network of some blocks, to which ``spoil`` is done at each step before the forward pass."""

    def __init__(self, spoil: Spoil, blocks: int = 4, lr: float = 0.02) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)) for _ in range(blocks)
        )
        self.head = nn.Linear(32, 1)
        self.spoil, self.lr = spoil, lr

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = x + 0.3 * block(x)
        return self.head(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = self.spoil(self, index, batch)
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Adversaries(LightningModule):
    """A generator and a critic, each with an optimizer; the critic's rate leaps at batch 600."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))
        self.critic = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, _ = batch
        first, second = self.optimizers()
        for number, optimizer in enumerate((first, second)):
            made = self.generator(torch.randn(len(x), 4))
            loss = (
                -self.critic(made).mean() if number == 0 else (self.critic(made) - self.critic(x) + 1).square().mean()
            )
            optimizer.zero_grad()
            self.manual_backward(loss)
            if number == 1 and index in (400, 700):
                # The first is a gradient that nobody explains, the second one that comes with damage.
                with torch.no_grad():
                    for parameter in self.critic.parameters():
                        assert parameter.grad is not None
                        parameter.grad.mul_(1e6)
                        if index == 700:
                            parameter.mul_(50.0)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.generator, self.critic)]


def untouched(module: LightningModule, index: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def not_finite_from(step: int) -> Spoil:
    def spoil(module: LightningModule, index: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return (x * float("nan"), y) if index >= step else batch

    return spoil


def bad_batch_at(step: int) -> Spoil:
    def spoil(module: LightningModule, index: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return (x, y * 1e4) if index == step else batch

    return spoil


def bad_layer_at(step: int, name: str, factor: float = 300.0) -> Spoil:
    def spoil(module: LightningModule, index: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if index == step:
            with torch.no_grad():
                module.get_submodule(name).weight.mul_(factor)
        return batch

    return spoil


def rate_leaps_at(step: int, factor: float = 300.0) -> Spoil:
    def spoil(module: LightningModule, index: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if index == step:
            for group in module.optimizers().optimizer.param_groups:
                group["lr"] *= factor
        return batch

    return spoil


def both(first: Spoil, second: Spoil) -> Spoil:
    return lambda module, index, batch: second(module, index, first(module, index, batch))


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def train(folder: Path, name: str, module: LightningModule, steps: int, guard: GradGuard | None = None) -> GradGuard:
    """Train into ``folder/name``, quietly, and return the guard."""
    guard = guard or GradGuard()
    with warnings.catch_warnings(), quiet(logging.getLogger("lightning_gradguard")):
        warnings.simplefilter("ignore")
        trainer = Trainer(
            callbacks=[guard],
            logger=TensorBoardLogger(folder, name=name, version=""),
            max_epochs=1,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, DataLoader(Stream(steps), batch_size=None))
    return guard


def write(folder: Path, name: str) -> GradGuard:
    """Train one of the stories into ``folder/name``."""
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    made: dict[str, Callable[[], tuple[LightningModule, int]]] = {
        "stopped": lambda: (Regression(not_finite_from(301)), 600),
        "bad-batch": lambda: (Regression(bad_batch_at(500)), 900),
        "bad-layer": lambda: (Regression(bad_layer_at(400, "blocks.2.2")), 1000),
        "bad-rate": lambda: (Regression(rate_leaps_at(400)), 1000),
        "second-try": lambda: (
            Regression(both(bad_layer_at(397, "blocks.1.0", 30.0), rate_leaps_at(400, 100.0))),
            900,
        ),
        "adversaries": lambda: (Adversaries(), 1000),
        "many": lambda: (Regression(bad_layer_at(300, "blocks.77.0"), blocks=80), 600),
    }
    module, steps = made[name]()
    return train(folder, name, module, steps)
