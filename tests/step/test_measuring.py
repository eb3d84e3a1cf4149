"""Gradients become statistics, and what is worth its cost in few steps only is measured in few steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.step import StepInputs
from lightning_gradguard.step.measuring import joint_loss, measured
from lightning_gradguard.step.preparing import prepare
from tests.builders import mlp, regression
from tests.step.loop import Loop


def test_the_norm_and_the_loss_are_those_of_the_batch() -> None:
    loop = Loop()
    loss = loop.backward()
    inputs = StepInputs(loss, step=17)
    prepare(loop.run, loop.track, inputs)
    found = measured(loop.run, loop.track, inputs).statistics
    squares = [p.grad.square().sum() for p in loop.network.parameters() if p.grad is not None]
    assert found.norm == pytest.approx(float(torch.stack(squares).sum().sqrt()))
    assert (found.step, found.loss, found.rate) == (17, pytest.approx(loss.item()), 0.01)


def test_updates_are_measured_at_first_and_where_the_rate_leaps() -> None:
    first = [Loop(steps).measured().statistics.update_ratio is not None for steps in (0, 4, 5, 60)]
    assert first == [True, True, False, False]
    loop = Loop()
    loop.optimizer.param_groups[0]["lr"] = 0.1
    assert loop.measured().statistics.update_ratio is not None
    assert loop.track.baseline.updates.looked == 0.1


def test_what_is_wrong_with_the_state_is_asked_only_where_somebody_wrote_to_it() -> None:
    loop = Loop()
    assert loop.measured().statistics.spoilt is None
    weight = next(loop.network.parameters())
    loop.optimizer.state[weight]["momentum_buffer"].fill_(float("inf"))
    assert loop.measured().statistics.spoilt is None
    loop.track.watch.tampered = True
    assert "not finite" in (loop.measured().statistics.spoilt or "")


def test_a_loss_waits_where_several_processes_are_calm_and_not_where_the_norm_is_large() -> None:
    loop = Loop()
    asked: list[Any] = []

    def mean(values: list[float]) -> list[float]:
        asked.append(len(values))
        return list(values)

    loop.run.collectives = Collectives(2, mean=mean)
    loop.track.steps = 65
    typical = loop.track.baseline.norms.typical
    assert joint_loss(loop.run, loop.track, 1.0, typical) is None and asked == []
    assert joint_loss(loop.run, loop.track, 2.0, 1e9 * typical) == 2.0 and asked == [2]


def test_the_context_knows_the_scaler_only_where_it_is_in_use() -> None:
    loop = Loop()
    off = torch.amp.GradScaler("cpu", enabled=False)
    context = measured(loop.run, loop.track, StepInputs(loop.backward(), scaler=off))
    assert context.scaler is None and not context.statistics.scaled
    assert dataclasses.fields(context) and context.grad_scale == 1.0


@pytest.mark.parametrize("lost", [True, False])
def test_an_update_that_a_loaded_state_makes_is_measured_by_what_it_did(lost: bool) -> None:
    """Adam's second moments were lost: nobody foretells from gradient and rate what its first update is."""
    network, batches = mlp(), regression(160)
    earlier = torch.optim.Adam(network.parameters(), lr=0.01)
    for x, y in batches[:60]:
        earlier.zero_grad()
        nn.functional.mse_loss(network(x), y).backward()
        earlier.step()
    state = earlier.state_dict()
    for one in state["state"].values():
        one["exp_avg_sq"].mul_(0.0 if lost else 1.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    optimizer.load_state_dict(state)
    guard, losses = Guard(network), []
    guard.attach(optimizer)
    for x, y in batches[60:]:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss)
        optimizer.step()
        losses.append(float(loss))
    assert bool(guard.incidents) is lost
    assert sum(losses[-20:]) / 20 < 2.0 * losses[0] + 0.1
