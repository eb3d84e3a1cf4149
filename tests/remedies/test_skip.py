"""Skipping: nothing moves, whatever the optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.remedies import Skip
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from tests.builders import context_for, mlp, regression, same, spoil

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
def test_a_skipped_step_changes_neither_weights_nor_state(name: str, seen: int) -> None:
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


def test_only_the_contexts_own_parameters_are_skipped() -> None:
    module = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    Skip().apply(context_for(module[0]))
    assert module[0].weight.grad is None and module[1].weight.grad is not None


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradients_that_are_captured_stay_the_same_tensors(compiled: bool) -> None:
    """A graph of a whole step finds gradients where they were: such a loop empties them, and never gives them up."""
    batches = regression(40)

    def run(chosen: Any, guard: Guard | None) -> Any:
        network = mlp()
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        module: Any = torch.compile(network, backend="aot_eager") if compiled else network
        if guard is not None:
            guard.bind(network)
        places = set()
        for x, y in chosen:
            optimizer.zero_grad(set_to_none=False)
            nn.functional.mse_loss(module(x), y).backward()
            if guard is not None:
                guard.before_step(optimizer)
            optimizer.step()
            places.add(tuple(0 if p.grad is None else p.grad.data_ptr() for p in network.parameters()))
        assert len(places) == 1 and 0 not in next(iter(places))
        return network.state_dict(), list(optimizer.state.values())

    plain = run(batches[:20] + batches[21:], None)
    assert same(plain, run(spoil(batches, 20), Guard()))


def test_a_parameter_without_a_gradient_of_its_own_gets_none_from_a_step_before() -> None:
    module = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    sum((layer(torch.ones(1, 1)) * math.nan).sum() for layer in module).backward()  # type: ignore[union-attr]
    (skip := Skip()).apply(context_for(module, optimizer))
    module[0](torch.ones(1, 1)).sum().backward()  # The step was never made, and its end was never told.
    skip.after_update()
    assert module[0].weight.grad is not None and module[1].weight.grad is None
