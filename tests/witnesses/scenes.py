"""Runs that the tests of the witnesses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.records import Window
from lightning_gradguard.witnesses import Witness


class Attending(nn.Module):
    """One block of attention, a router whose logits weigh experts, and a head."""

    def __init__(self, width: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        weights = self.router(x).softmax(-1)
        x = sum((weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts)), x)
        return self.head(x.mean(1))


def batches(count: int, *, width: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 6, width, generator=generator) for _ in range(count)]
    return [(x, x.mean(1)[:, :1]) for x in inputs]


class Windows(Sink):
    """Keep the windows."""

    def __init__(self) -> None:
        self.all: list[Window] = []

    def window(self, window: Window) -> None:
        self.all.append(window)

    def of(self, name: str) -> list[float]:
        return [told.value for window in self.all for told in window.witnessed if told.witness == name]


def train(
    network: nn.Module,
    data: Sequence[tuple[Tensor, Tensor]],
    *,
    witnesses: Sequence[Witness] = (),
    make: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    before: Callable[[int], None] = lambda step: None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    **options: Any,
) -> tuple[Guard, Windows]:
    """Train a network with a guard that makes a window of each few steps."""
    optimizer = make(network.parameters())
    windows = Windows()
    guard = Guard(network, sinks=[windows], witnesses=witnesses, **{"log_every": 5, **options})
    guard.attach(optimizer)
    for step, (x, y) in enumerate(data):
        before(step)
        guard.before_forward((x, y), step)
        optimizer.zero_grad()
        loss = loss_of(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y), batch_index=step)
        optimizer.step()
        guard.after_step()
    guard.flush()
    return guard, windows
