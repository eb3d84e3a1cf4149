"""What a case is, how it is registered, and the pieces that cases are made of."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from benchmarks.zoo.data import Batches, Corruption, Split, loader

MODULES = (
    "initialisation",
    "learning_rate",
    "corrupt_batches",
    "corrupt_state",
    "precision",
    "attention",
    "recurrent",
    "adversarial",
    "healthy",
)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]
Event = Callable[["Learner"], None]


class Task(NamedTuple):
    """One run, ready to be fitted: the module, its data, and how to score it (higher is better)."""

    module: LightningModule
    batches: DataLoader[Any]
    evaluate: Callable[[LightningModule], float]


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Args:
        name: Unique name.
        cause: Why the run explodes; for a healthy control, what looks dangerous about it.
        form: How the explosion shows (``records.Form``), ``"none"`` for a healthy control.
        architecture: Kind of net.
        optimizer: Name of the optimizer, as reported.
        kind: ``"sick"`` or ``"healthy"``.
        create: ``create(seed, sick) -> Task``; the healthy twin is the same with ``sick=False``.
        max_steps: Optimizer steps of the run; the twin has converged well before.
        culprit: Module names, any of which is a right answer; empty where no layer is to blame.
        chance: Score of a model that has learned nothing.
        trainer: Extra arguments of the Trainer, made anew for every run.
    """

    name: str
    cause: str
    form: str
    architecture: str
    optimizer: str
    kind: Literal["sick", "healthy"]
    create: Callable[[int, bool], Task]
    max_steps: int
    culprit: frozenset[str]
    chance: float
    trainer: Callable[[], dict[str, Any]]

    @property
    def held_out(self) -> bool:
        """Whether the case is kept aside from tuning: a third of them, by the hash of the name."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 3 == 0

    @property
    def adam(self) -> bool:
        """Whether the optimizer is of Adam's family."""
        return self.optimizer.startswith("Adam")

    def build(self, seed: int, sick: bool) -> Task:
        """Build the run; the same arguments give the same run, whatever ran before."""
        torch.manual_seed(seed)
        return self.create(seed, sick and self.kind == "sick")

    @property
    def source(self) -> str:
        """Path of the file that defines the case."""
        return inspect.getsourcefile(self.create) or ""


REGISTRY: dict[str, Case] = {}


def case(
    *,
    cause: str,
    architecture: str,
    optimizer: str,
    form: str = "none",
    kind: Literal["sick", "healthy"] = "sick",
    steps: int = 300,
    culprit: Sequence[str] = (),
    chance: float = 0.1,
    trainer: Callable[[], dict[str, Any]] = dict,
) -> Callable[[Callable[[int, bool], Task]], Callable[[int, bool], Task]]:
    """Register a ``create(seed, sick)`` function as the case of its name."""

    def register(create: Callable[[int, bool], Task]) -> Callable[[int, bool], Task]:
        name = create.__name__
        if name in REGISTRY:
            raise ValueError(f"two cases are named {name}")
        REGISTRY[name] = Case(
            name, cause, form, architecture, optimizer, kind, create, steps, frozenset(culprit), chance, trainer
        )
        return create

    return register


def cases(pattern: str = "*", held_out: str = "include") -> list[Case]:
    """List the cases whose name or cause matches one of the comma-separated patterns."""
    for name in MODULES:
        importlib.import_module(f"benchmarks.zoo.{name}")
    wanted = {"include": (True, False), "exclude": (False,), "only": (True,)}[held_out]
    patterns = [p if any(c in p for c in "*?[") else f"*{p}*" for p in pattern.split(",")]
    return [
        c
        for c in REGISTRY.values()
        if c.held_out in wanted and any(fnmatch.fnmatch(t, p) for p in patterns for t in (c.name, c.cause, c.kind))
    ]


class Learner(LightningModule):
    """A net, a loss, an optimizer, and things that happen to it at given batches."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        events: Mapping[int, Event] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.events = dict(events or {})

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net."""
        out: Tensor = self.net(x)
        return out

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let happen what is due: after every callback's hook, so that no guard sees it coming."""
        if batch_idx in self.events:
            with torch.no_grad():
                self.events[batch_idx](self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the scheduler if there is one, stepped after every optimizer step."""
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the mean cross-entropy over the last dimension of the logits."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def accuracy(split: Split) -> Callable[[LightningModule], float]:
    """Score by accuracy on the test part; a model that answers NaN scores 0."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        logits = module(split.x_test)
        right = (logits.argmax(-1) == split.y_test) & logits.isfinite().all(-1)
        return float(right.float().mean())

    return evaluate


def r_squared(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by R² on given data, not below 0; a model that answers NaN scores 0."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        error = (module(x) - y).double().square().mean()
        score = 1 - float(error / y.double().var(0, correction=0).mean())
        return score if score > 0 else 0.0  # also for a NaN

    return evaluate


def classify(
    net: nn.Module,
    split: Split,
    seed: int,
    optimizer: OptimizerFactory,
    *,
    size: int = 32,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    corrupt: Mapping[int, Corruption] | None = None,
    events: Mapping[int, Event] | None = None,
    scheduler: SchedulerFactory | None = None,
    transform: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Task:
    """Make a classification run."""
    batches = Batches(split.x, split.y, size, seed, corrupt, transform)
    return Task(Learner(net, loss, optimizer, scheduler, events), loader(batches), accuracy(split))


def regress(
    net: nn.Module,
    split: Split,
    seed: int,
    optimizer: OptimizerFactory,
    *,
    size: int = 32,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    corrupt: Mapping[int, Corruption] | None = None,
    events: Mapping[int, Event] | None = None,
    scheduler: SchedulerFactory | None = None,
    transform: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Task:
    """Make a regression run."""
    batches = Batches(split.x, split.y, size, seed, corrupt, transform)
    module = Learner(net, loss, optimizer, scheduler, events)
    return Task(module, loader(batches), r_squared(split.x_test, split.y_test))


def reconstruct(net: nn.Module, split: Split, seed: int, optimizer: OptimizerFactory, **options: Any) -> Task:
    """Make an autoencoder run: the target is the flattened input; scored by R² over all pixels."""
    x, x_test = split.x, split.x_test.flatten(1)
    flat = Split(x, x.flatten(1), split.x_test, x_test)
    return regress(net, flat, seed, optimizer, **options)


def sgd(lr: float, momentum: float = 0.9, **options: Any) -> OptimizerFactory:
    """Make SGD with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum, **options)


def adam(lr: float, **options: Any) -> OptimizerFactory:
    """Make Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr, **options)


def adamw(lr: float, **options: Any) -> OptimizerFactory:
    """Make AdamW; ``fused=True`` for the fused kernel."""
    return lambda parameters: torch.optim.AdamW(parameters, lr, **options)


def rmsprop(lr: float, **options: Any) -> OptimizerFactory:
    """Make RMSprop."""
    return lambda parameters: torch.optim.RMSprop(parameters, lr, **options)


def scale(factor: float) -> Corruption:
    """Multiply the inputs of a batch."""
    return lambda x, y: (x * factor, y)


def foreign(factor: float) -> Corruption:
    """Give a batch of another data set: inputs in other units, labels that have nothing to do with them."""
    return lambda x, y: (x * factor, y.roll(1))


def fill(value: float, rows: int = 1) -> Corruption:
    """Overwrite the inputs of the first rows of a batch."""

    def corrupt(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x[:rows] = value
        return x, y

    return corrupt


def when(sick: bool, events: Mapping[int, Any]) -> Mapping[int, Any] | None:
    """Keep events or corruptions for the sick run only."""
    return events if sick else None
