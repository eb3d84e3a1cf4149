"""Train a recipe under Lightning, healthy or with a trouble, and say how it ended."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm.optim
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, optim
from torch.nn.utils import parameters_to_vector
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.field.networks import Adversaries
from benchmarks.field.recipes import Batch, Recipe, draw_moons
from benchmarks.zoo.observer import UpdateObserver, fingerprint_state
from lightning_gradguard import GradGuard

Row = dict[str, Any]

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "sgd": lambda p, rate: optim.SGD(p, rate),
    "momentum": lambda p, rate: optim.SGD(p, rate / 5, momentum=0.9),
    "nesterov": lambda p, rate: optim.SGD(p, rate / 5, momentum=0.9, nesterov=True),
    "adam 1e-4": lambda p, _: optim.Adam(p, 1e-4),
    "adam 1e-3": lambda p, _: optim.Adam(p, 1e-3),
    "adam 3e-3": lambda p, _: optim.Adam(p, 3e-3),
    "adam 1e-2": lambda p, _: optim.Adam(p, 1e-2),
    "adamw": lambda p, _: optim.AdamW(p, 1e-3, weight_decay=0.1),
    "rmsprop": lambda p, _: optim.RMSprop(p, 1e-3),
    "adagrad .01": lambda p, _: optim.Adagrad(p, 0.01),
    "adagrad .05": lambda p, _: optim.Adagrad(p, 0.05),
    "adadelta": lambda p, _: optim.Adadelta(p, 1.0),
    "nadam": lambda p, _: optim.NAdam(p, 1e-3),
    "radam": lambda p, _: optim.RAdam(p, 3e-3),
    "adamax": lambda p, _: optim.Adamax(p, 2e-3),
    "lbfgs": lambda p, _: optim.LBFGS(p, 0.1, max_iter=4),
    "lion": lambda p, _: timm.optim.Lion(p, 3e-4),
}
"""The second argument is the recipe's rate for plain SGD."""

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total: 1.0,
    "warm-up": lambda step, total: min(1.0, (step + 1) / 50),
    "cosine": lambda step, total: 0.5 * (1 + math.cos(math.pi * min(step, total) / total)),
    "one-cycle": lambda step, total: _one_cycle(min(step, total) / total),
    "step": lambda step, total: 0.1 ** (step >= total * 2 // 3),
}
"""The factor on the rate at a step of so many."""


def _one_cycle(at: float) -> float:
    return 0.04 + 0.96 * (at / 0.3 if at < 0.3 else 0.5 * (1 + math.cos(math.pi * (at - 0.3) / 0.7)))


@dataclass(frozen=True)
class Trouble:
    """What is done to a run. Every hook may be left out.

    Args:
        name: What it is.
        start: Change the network before the first step.
        at: Change anything before a step; gets the run and the count of batches so far.
        spoil: Change a batch.
        lasting: What all inputs go through to the end of the run: a pipeline that lacks a step lacks it in validation
            as well, so the score is of such inputs.
        loss: Change the loss; gets the loss, the network's output-free batch and the count of batches.
        gradients: Change the gradients after backward.
        rate: Factor on the learning rate, as a bad schedule would give it.
        culprit: Names of the layers of which one has to be blamed first; empty where there is none.
    """

    name: str
    start: Callable[[Any], None] | None = None
    at: Callable[[Any, int], None] | None = None
    spoil: Callable[[Batch, int], Batch] | None = None
    lasting: Callable[[Tensor], Tensor] | None = None
    loss: Callable[[Tensor, int], Tensor] | None = None
    gradients: Callable[[Any, int], None] | None = None
    rate: Callable[[int], float] | None = None
    culprit: tuple[str, ...] = ()


NO_TROUBLE = Trouble("none")


@dataclass(frozen=True)
class Run:
    """One run to do, guarded or not."""

    name: str
    recipe: Recipe
    optimizer: str
    schedule: str = "constant"
    trouble: Trouble = NO_TROUBLE
    steps: int = 300
    resume: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Stream(IterableDataset[Batch]):
    """Endless batches; the n-th is the same in every run."""

    def __init__(self, run: Run, first: int = 0) -> None:
        self.run, self.first = run, first

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first, 1 << 30):
            batch = self.run.recipe.batch(torch.Generator().manual_seed(1000 + step))
            yield self.run.trouble.spoil(batch, step) if self.run.trouble.spoil else batch


class Learner(LightningModule):
    """A recipe as a LightningModule, with its trouble."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.net = run.recipe.net()
        if run.trouble.start:
            with torch.no_grad():
                run.trouble.start(self.net)
        self.losses: list[float] = []
        self.count = 0

    def configure_optimizers(self) -> Any:
        wanted = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = OPTIMIZERS[self.run.optimizer](wanted, self.run.recipe.rate)

        def factor(step: int) -> float:
            extra = self.run.trouble.rate(step) if self.run.trouble.rate else 1.0
            return extra * SCHEDULES[self.run.schedule](step, self.run.steps)

        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.run.recipe.later:
            self.run.recipe.later(self.net, self.count)
        if self.run.trouble.at:
            with torch.no_grad():
                self.run.trouble.at(self, self.count)
        self.count += 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.run.recipe.loss(self.net, batch)
        if self.run.trouble.loss:
            loss = self.run.trouble.loss(loss, self.count - 1)
        self.losses.append(float(loss.detach()))
        return loss

    def on_after_backward(self) -> None:
        if self.run.trouble.gradients:
            with torch.no_grad():
                self.run.trouble.gradients(self.net, self.count - 1)


class AdversarialLearner(Learner):
    """A generator against a critic, by manual optimization: with a gradient penalty (WGAN-GP), or non-saturating."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.automatic_optimization = False
        self.net: Adversaries

    def configure_optimizers(self) -> Any:
        rate = 1e-3
        return [
            optim.Adam(self.net.generator.parameters(), rate, betas=(0.5, 0.9)),
            optim.Adam(self.net.critic.parameters(), rate, betas=(0.5, 0.9)),
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        of_generator, of_critic = self.optimizers()  # type: ignore[misc]
        fake = self.net.generator(torch.randn(len(batch[0]), 4))
        loss = self._critic_loss(batch[0], fake.detach())
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        self.losses.append(float(loss.detach()))
        loss = self._generator_loss(fake)
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        critic = self.net.critic
        if self.run.recipe.name == "gan":
            return (
                torch.nn.functional.softplus(-critic(real)).mean() + torch.nn.functional.softplus(critic(fake)).mean()
            )
        mixed = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        return critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    def _generator_loss(self, fake: Tensor) -> Tensor:
        out = self.net.critic(fake)
        return torch.nn.functional.softplus(-out).mean() if self.run.recipe.name == "gan" else -out.mean()


def moons_score(net: Any) -> float:
    """Mean and covariance of generated points against real ones; 1 where they agree."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        fake = net.generator(torch.randn(1024, 4))
    (real,) = draw_moons(torch.Generator().manual_seed(5), 1024)
    off = (fake.mean(0) - real.mean(0)).norm() + (torch.cov(fake.T) - torch.cov(real.T)).norm()
    return float(1 - off / torch.cov(real.T).norm())


ADVERSARIAL = tuple(
    Recipe(name, Adversaries, draw_moons, lambda net, b: b[0].sum(), moons_score) for name in ("wgan_gp", "gan")
)


def train(run: Run, guarded: bool, seed: int = 0) -> Row:
    """Do one run; what it raises is kept in the row."""
    torch.manual_seed(seed)
    learner = (AdversarialLearner if run.recipe in ADVERSARIAL else Learner)(run)
    before = score(learner)
    observer, guards, error = UpdateObserver(), [], ""
    start = time.process_time()
    trainer = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            for part, (first, last) in enumerate(_parts(run)):
                guards += [GradGuard(journal=False)] if guarded else []
                trainer = _trainer(run, learner, [*guards[-1:], observer], last)
                torch.manual_seed(seed + 1 + part)
                checkpoint = str(Path(folder) / "half.ckpt") if part else None
                trainer.fit(
                    learner,
                    DataLoader(Stream(run, first), batch_size=None),
                    ckpt_path=checkpoint,
                    weights_only=part == 0 or None,
                )
                if last < run.steps:
                    trainer.save_checkpoint(Path(folder) / "half.ckpt")
                if trainer.should_stop:
                    break
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"[:300]
    incidents = [i for g in guards for i in g.incidents]
    return {
        "score": score(learner),
        "score_before": before,
        "finite": bool(parameters_to_vector(learner.parameters()).isfinite().all()),
        "losses": [_mean(learner.losses[:30]), _mean(learner.losses[-30:])],
        "state": fingerprint_state(learner, trainer.optimizers if trainer else []),
        "steps": learner.count,
        "stopped": bool(trainer and guarded and trainer.should_stop and learner.count < run.steps),
        "large_updates": observer.large,
        "nonfinite_updates": observer.nonfinite,
        "worst_update": min(observer.worst, 1e300),
        "first_bad_update": observer.first_bad,
        "incidents": [_describe(i) for i in incidents[:20]],
        "interventions": sum(1 for i in incidents if i.remedies),
        "culprit": next((i.culprit for i in incidents if i.culprit), None),
        "error": error,
        "seconds": round(time.process_time() - start, 2),
    }


def _parts(run: Run) -> list[tuple[int, int]]:
    return [(0, run.steps)] if run.resume is None else [(0, run.resume), (run.resume, run.steps)]


def _trainer(run: Run, learner: Learner, callbacks: list[Any], last: int) -> Trainer:
    return Trainer(
        max_steps=last * (1 if learner.automatic_optimization else 2),
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **{**_fresh(run.recipe.options), **_fresh(run.options)},
    )


def _fresh(options: dict[str, Any]) -> dict[str, Any]:
    """Make what has to be new for every Trainer."""
    return {key: value() if callable(value) else value for key, value in options.items()}


def score(learner: Learner) -> float:
    """Score of the network as it is, −1 where it cannot be had."""
    learner.eval()
    net, lasting = learner.net, learner.run.trouble.lasting
    try:
        with torch.no_grad():
            value = float(learner.run.recipe.score(net if lasting is None else lambda x: net(lasting(x))))
    except (RuntimeError, ValueError):
        value = math.nan
    learner.train()
    return max(value, -1.0) if math.isfinite(value) else -1.0


def _mean(values: list[float]) -> float | None:
    mean = sum(values) / max(1, len(values))
    return mean if math.isfinite(mean) else None


def _describe(incident: Any) -> Row:
    return {
        "step": incident.step,
        "form": incident.form,
        "detector": incident.actions[0].verdict.detector if incident.actions else "",
        "reason": incident.actions[0].verdict.reason if incident.actions else "",
        "culprit": incident.culprit,
        "remedies": list(incident.remedies),
        "alarms": incident.alarms,
        "closed": incident.closed,
        "helped": incident.helped,
    }
