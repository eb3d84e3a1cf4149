"""A policy that its first updates have made certain: loss and gradients are gone, and every state gets one action."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from tests.builders import mlp, same

ARMS, STEPS = 3, 300


def arms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, ARMS))


def best(states: Tensor) -> Tensor:
    """Return the arm that pays: it depends on the state."""
    return (states[:, :ARMS]).argmax(1)


def policy_run(scale: float, guard_it: bool) -> tuple[nn.Module, list[float], Guard | None]:
    """Train by REINFORCE on pay of this scale; return the policy, the shares of right answers and the guard."""
    policy = arms()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    guard = Guard(policy) if guard_it else None
    if guard is not None:
        guard.attach(optimizer)
    generator, right = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        states = 2.0 + torch.randn(64, 4, generator=generator)
        chances = policy(states).log_softmax(1)
        chosen = torch.multinomial(chances.detach().exp(), 1, generator=generator)[:, 0]
        pay = (chosen == best(states)).float()
        loss = -(chances[torch.arange(64), chosen] * pay * scale).mean()
        optimizer.zero_grad()
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss.detach(), batch=states)
        optimizer.step()
        if guard is not None:
            guard.after_step()
        right.append(float(pay.mean()))
    return policy, right, guard


def test_a_policy_put_out_by_raw_pay_is_brought_back() -> None:
    _, lost, _ = policy_run(1e5, guard_it=False)
    _, saved, guard = policy_run(1e5, guard_it=True)
    assert guard is not None
    assert sum(lost[-50:]) / 50 < 0.5, "unguarded it gives one answer to all"
    assert sum(saved[-50:]) / 50 > 0.8
    trials = [trial for incident in guard.incidents for trial in incident.trials]
    assert guard.incidents[0].step == 40
    assert trials and trials[0].cause == "learning rate"
    assert {trial.outcome for trial in trials} <= {"calm", "taken back"}, "its loss is no measure"


def test_one_that_learns_from_pay_of_the_usual_size_is_left_alone() -> None:
    alone, _, _ = policy_run(1.0, guard_it=False)
    guarded, _, guard = policy_run(1.0, guard_it=True)
    assert guard is not None and not guard.incidents
    assert same(dict(alone.state_dict()), dict(guarded.state_dict()))


def solved(*, numbers: bool, guarded: bool) -> tuple[nn.Module, list[float], Guard | None]:
    """Train by large updates on a task without noise; return the module, its losses and the guard."""
    torch.manual_seed(3)
    module: nn.Module = nn.Linear(8, 2) if numbers else mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.4 if numbers else 2.0)
    guard, losses, generator = Guard(module) if guarded else None, [], torch.Generator().manual_seed(3)
    for _ in range(200):
        x = torch.randn(64, 8, generator=generator)
        optimizer.zero_grad()
        if numbers:
            loss = nn.functional.mse_loss(module(x), torch.stack([3.0 * x[:, 0] + 2.0, 5.0 * x[:, 1] - 1.0], 1))
        else:
            loss = nn.functional.cross_entropy(torch.cat([module(x), -module(x)], 1), (x[:, 0] > 0).long())
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss.detach(), batch=x)
        optimizer.step()
        if guard is not None:
            guard.after_step()
        losses.append(float(loss.detach()))
    return module, losses, guard


@pytest.mark.parametrize("numbers", [True, False])
def test_a_task_that_is_solved_at_once_by_large_updates_is_left_alone(numbers: bool) -> None:
    alone, losses, _ = solved(numbers=numbers, guarded=False)
    guarded, _, guard = solved(numbers=numbers, guarded=True)
    assert guard is not None and not guard.incidents
    assert same(dict(alone.state_dict()), dict(guarded.state_dict()))
    assert not numbers or losses[50] < 1e-8 * losses[0], "loss and gradients are gone here as well"
