"""Pieces that the healthy runs share: data, a plain module, scores, and training before the run begins."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn import datasets
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.wild.case import Task, Variant

FOLDER = tempfile.TemporaryDirectory()
"""Where the checkpoints of resumed runs lie until the process ends."""
NUMBERS = itertools.count()

Evaluate = Callable[[LightningModule], float]


class Data(NamedTuple):
    """Training and test tensors."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def lr(variant: Variant, written: float) -> float:
    """Give the learning rate of a variant."""
    return written * {"slower": 1 / 3, "faster": 3.0}.get(variant, 1.0)


def loader(seed: int, *tensors: Tensor, size: int = 32) -> DataLoader[Any]:
    """Serve shuffled whole batches, in an order that depends on the seed alone."""
    data = TensorDataset(*tensors)
    generator = torch.Generator().manual_seed(seed + 1)
    sampler = BatchSampler(RandomSampler(data, generator=generator), size, drop_last=True)
    return DataLoader(data, sampler=sampler, batch_size=None)


def split(x: Any, y: Any, test: int, dtype: torch.dtype = torch.float32) -> Data:
    """Shuffle the rows, always in the same way, and set some aside as a test."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    xs, ys = torch.as_tensor(x, dtype=torch.float32)[order], torch.as_tensor(y, dtype=dtype)[order]
    return Data(xs[test:], ys[test:], xs[:test], ys[:test])


def digits() -> Data:
    """Give the handwritten digits as rows of 64 pixels in [0, 1]."""
    raw = datasets.load_digits()
    return split(raw.data / 16, raw.target, 500, torch.long)


def diabetes() -> Data:
    """Give the diabetes set: ten standardised features, the raw target of 25 to 346 in a column."""
    raw = datasets.load_diabetes()
    return split(raw.data / raw.data.std(0), raw.target[:, None], 120)


def breast_cancer(standard: bool = True) -> Data:
    """Give the breast cancer set with its 30 features standardised or in their own units."""
    raw = datasets.load_breast_cancer()
    x = (raw.data - raw.data.mean(0)) / raw.data.std(0) if standard else raw.data
    return split(x, raw.target, 169, torch.long)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Stack linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers[:-1])


class Plain(LightningModule):
    """A net with a loss, an optimizer, and perhaps a scheduler that steps after every batch."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.make_optimizer, self.make_scheduler = net, loss, optimizer, scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net."""
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute the loss of a batch."""
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the scheduler."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.make_scheduler(optimizer), "interval": "step"}]


def scored(score: Callable[[Any], Any], chance: float = 0.0) -> Evaluate:
    """Turn a function of the module in evaluation mode into a score that is at least that of chance, for a NaN too."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        value = float(score(module))
        return value if value > chance else chance

    return evaluate


def accuracy(data: Data, chance: float = 0.1) -> Evaluate:
    """Score by accuracy on the test rows."""

    def score(module: Any) -> Tensor:
        logits = module(data.x_test)
        return ((logits.argmax(-1) == data.y_test) & logits.isfinite().all(-1)).float().mean()

    return scored(score, chance)


def r2(y: Tensor, guess: Tensor) -> float:
    """Give the share of the variance that a guess explains."""
    return float(1 - (guess - y).double().square().mean() / y.double().var(0, correction=0).mean())


def fitted(data: Data) -> Evaluate:
    """Score by R² on the test rows."""
    return scored(lambda m: r2(data.y_test, m(data.x_test)))


def train(module: LightningModule, batches: Any, steps: int) -> Trainer:
    """Train in silence for some steps, before the run begins."""
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, enable_checkpointing=False, **silent)
    trainer.fit(module, batches)
    return trainer


def resumed(make: Callable[[], LightningModule], batches: Any, evaluate: Evaluate, steps: int) -> Task:
    """Make a run that goes on from the checkpoint of one of some steps."""
    path = Path(FOLDER.name) / f"{next(NUMBERS)}.ckpt"
    train(make(), batches, steps).save_checkpoint(path)
    return Task(make(), batches, evaluate, str(path))
