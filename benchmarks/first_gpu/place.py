"""Where things are measured: a real GPU, or the simulated one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from tests.device import simulated
from tests.device.training import OPTIMIZERS, network

AT = 60
"""Step of the bad batch: long after the first snapshots, in the middle of a calm run."""


SHORT = ("AdamW foreach", "AdamW fused", "Adam capturable", "SGD fused")
"""Optimizers that are tried in short form."""


class Place:
    """Where things are measured: a real GPU, or the simulated one.

    Args:
        real: Whether there is a GPU.
    """

    def __init__(self, *, real: bool) -> None:
        self.real = real
        # All are tried there by the test suite too.
        self.optimizers = OPTIMIZERS if real else {kind: OPTIMIZERS[kind] for kind in SHORT}

    def loop(self, optimizer: Any, module: nn.Module | None = None, **options: Any) -> Any:
        """Return a training loop there."""
        if self.real:
            return RealLoop(module or network(), optimizer, **options)
        from tests.device.training import Loop

        return Loop(module or network(), optimizer, **options)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the device be there inside the block."""
        with contextlib.nullcontext() if self.real else simulated.simulated():
            yield

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.real:
            torch.cuda.synchronize()


class RealLoop:
    """The loop of ``tests.device.training``, on a real GPU."""

    def __init__(self, module: nn.Module, optimizer: Any, *, guarded: bool = True, **options: Any) -> None:
        self.module = module.cuda()
        self.optimizer = optimizer(self.module.parameters())
        self.guard, self.guarded, self.left = Guard(self.module, **options), guarded, 0
        if guarded:
            self.track = self.guard.attach(self.optimizer)

    def step(self, inputs: Tensor, targets: Tensor, by: float = 1.0, *, strict: bool = False) -> None:
        inputs, targets = inputs.cuda(), targets.cuda()
        if self.guarded:
            self.guard.augment((inputs, targets))
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.module(inputs), targets) * by
        loss.backward()
        if self.guarded:
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
            try:
                self.guard.before_step(self.optimizer, loss=loss.detach(), batch=(inputs, targets))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            self.left += self.track.gate.waiting
        self.optimizer.step()

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach().cpu() for p in self.module.parameters()]

    @property
    def incidents(self) -> list[tuple[int, str, tuple[str, ...]]]:
        return [(one.step, one.form, one.remedies) for one in self.guard.incidents]
