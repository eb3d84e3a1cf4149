"""Watch a run from outside: what updates were really applied, and what the end state is, bit for bit."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class UpdateObserver(Callback):
    """Measure every applied update against the median of those before it.

    It has to be the last callback: a rollback or a re-initialisation that a guard does in ``on_before_optimizer_step``
    is a remedy, not an update, and lies before the snapshot taken here. Updates that change nothing (skipped steps)
    teach nothing, and neither do those that are non-finite or ten times too large.
    """

    def __init__(self, history: int = 100, least: int = 5) -> None:
        self.history, self.least = history, least
        self.worst = 0.0
        self.large = 0
        self.nonfinite = 0
        self.first_bad: int | None = None
        self.steps = 0
        self._sizes: dict[int, deque[float]] = {}
        self._before: dict[int, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook every optimizer; a step that a GradScaler refuses never gets there."""
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Copy the weights."""
        inner = getattr(optimizer, "optimizer", optimizer)
        self._before[id(inner)] = [p.detach().clone() for p in _parameters(inner)]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        before = self._before.pop(id(optimizer), None)
        if before is None:
            return
        after = [p.detach() for p in _parameters(optimizer)]
        # float64, since a finite update of 1e20 overflows a float32 norm and would pass for a NaN
        size = math.sqrt(
            sum(float((a.double() - b.double()).square().sum()) for a, b in zip(after, before, strict=True))
        )
        self.steps += 1
        self._judge(self._sizes.setdefault(id(optimizer), deque(maxlen=self.history)), size)

    def _judge(self, past: deque[float], size: float) -> None:
        if not math.isfinite(size):
            self.nonfinite += 1
            self._note()
            return
        ratio = size / median(past) if len(past) >= self.least else 1.0
        self.worst = max(self.worst, ratio)
        if ratio >= 10:
            self.large += 1
            self._note()
        elif size > 0:
            past.append(size)

    def _note(self) -> None:
        if self.first_bad is None:
            self.first_bad = self.steps

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def fingerprint_state(module: LightningModule, optimizers: list[Optimizer]) -> str:
    """Hash parameters, buffers and optimizer states: equal only if all are bit-identical."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    for optimizer in optimizers:
        states = optimizer.state_dict()["state"]
        for key in sorted(states):
            for name in sorted(states[key]):
                value = states[key][name]
                digest.update(f"{key}{name}".encode())
                digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
