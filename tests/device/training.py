"""A training loop whose guard and optimizer see a simulated device, while forward and backward run on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from tests.device.simulated import DEVICE, Far, far, moved, near

CALM = 45
"""Steps after which a calm run is left to the device, but for the steps at which a snapshot is taken."""
TAKEN = 72
"""The first such step after that."""

Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW foreach": partial(torch.optim.AdamW, lr=1e-2, foreach=True),
    "AdamW fused": partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "AdamW for-loop": partial(torch.optim.AdamW, lr=1e-2, foreach=False),
    "Adam capturable": partial(torch.optim.Adam, lr=1e-2, capturable=True, foreach=True),
    "SGD foreach": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, foreach=True),
    "SGD fused": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True),
    "SGD fused, no momentum": partial(torch.optim.SGD, lr=1e-2, fused=True),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def batches(count: int, *, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        inputs = torch.randn(32, 8, generator=generator)
        yield inputs, inputs.sum(1, keepdim=True)


class Loop:
    """Train on a simulated device, inside :func:`~tests.device.simulated.simulated`.

    Attributes:
        waits: Why the guard has waited for the device, by step.
        left: Steps that were left to the device.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        device: str | Callable[[str], str] = "cuda:0",
        *,
        guarded: bool = True,
        **options: Any,
    ) -> None:
        self.module, self.twin = moved(module, device)
        self.home = device if isinstance(device, str) else "cuda:0"
        self.optimizer = optimizer(self.module.parameters())
        self.guard = Guard(self.module, **options)
        self.guarded = guarded
        if guarded:
            self.track = self.guard.attach(self.optimizer)
        self.waits: list[list[str]] = []
        self.left = 0

    def step(
        self, inputs: Tensor, targets: Tensor, by: float = 1.0, *, strict: bool = False, clip: float | None = None
    ) -> Any:
        if self.guarded:
            self.guard.augment((inputs, targets))
        self.optimizer.zero_grad()
        self.twin.zero_grad()
        loss = nn.functional.mse_loss(self.twin(inputs), targets) * by
        loss.backward()
        for mine, other in zip(self.module.parameters(), self.twin.parameters(), strict=True):
            if other.grad is not None:
                mine.grad = Far(other.grad, mine.device) if mine.device.type != "cpu" else other.grad
        before, report = len(DEVICE.waits), None
        DEVICE.strict = strict
        if self.guarded:
            report = self.guard.before_step(
                self.optimizer,
                loss=far(loss.detach(), self.home),
                batch=(far(inputs, self.home), far(targets, self.home)),
                batch_index=len(self.waits),
            )
            self.left += self.track.gate.waiting
        DEVICE.strict = False
        self.waits.append(DEVICE.waits[before:])
        if clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        return report

    def run(self, count: int) -> None:
        """Make steps on healthy batches."""
        for inputs, targets in batches(count):
            self.step(inputs, targets)

    @property
    def weights(self) -> list[Tensor]:
        return [near(p).detach().clone() for p in self.module.parameters()]

    @property
    def incidents(self) -> list[tuple[int, str, tuple[str, ...]]]:
        return [(one.step, one.form, one.remedies) for one in self.guard.incidents]
