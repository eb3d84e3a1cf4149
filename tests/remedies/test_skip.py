"""Skipping: nothing moves, whatever the optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard.remedies import Skip
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from tests.builders import context_for, mlp, same

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "SGD-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, weight_decay=0.1),
    "AdamW-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": torch.optim.Rprop,
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "ASGD": torch.optim.ASGD,
}


@pytest.mark.parametrize("seen", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_held_step_changes_neither_weights_nor_state(name: str, seen: int) -> None:
    module = mlp(norm=True)
    optimizer = OPTIMIZERS[name](module.parameters())
    for _ in range(seen):
        optimizer.zero_grad()
        module(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    running = RunningStatistics(module)
    before = [v.clone() for v in module.state_dict().values()], str(optimizer.state_dict()["state"])
    (module(torch.randn(4, 8)).sum() * math.nan).backward()
    outcome = Skip().apply(context_for(module, optimizer, running=running))
    optimizer.step()
    assert same(before, ([*module.state_dict().values()], str(optimizer.state_dict()["state"])))
    assert outcome.applied and outcome.coefficient == 0.0


def test_running_statistics_go_back_to_before_the_batch() -> None:
    module = mlp(norm=True)
    running = RunningStatistics(module)
    module(torch.full((4, 8), math.nan))
    assert not all(b.isfinite().all() for b in module.buffers())
    Skip().apply(context_for(module, running=running))
    assert all(b.isfinite().all() for b in module.buffers())


def test_only_the_scenes_own_parameters_are_held() -> None:
    module = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    Skip().apply(context_for(module[0]))
    assert module[0].weight.grad is None and module[1].weight.grad is not None
