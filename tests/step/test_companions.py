"""Optimizers that are trained on one another go back together, and one treatment is on trial at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.records import StepReport


class Pair(nn.Module):
    """A follower that is trained on what a leader says."""

    def __init__(self) -> None:
        super().__init__()
        self.leader, self.follower = nn.Linear(4, 4), nn.Linear(4, 1)

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each."""
        said = self.leader(x)
        return (said - x).square().mean(), (self.follower(x) - said.detach().sum(1, keepdim=True)).square().mean()


def train(rate: float, steps: int, follower: float = 1e-2) -> tuple[Guard, list[tuple[StepReport, StepReport]], Pair]:
    torch.manual_seed(0)
    module = Pair()
    guard = Guard(module, sinks=())
    optimizers = (
        torch.optim.SGD(module.leader.parameters(), rate),
        torch.optim.Adam(module.follower.parameters(), follower),
    )
    reports = []
    for step in range(steps):
        told = []
        for optimizer, loss in zip(optimizers, module.losses(torch.randn(16, 4)), strict=True):
            optimizer.zero_grad()
            loss.backward()
            told.append(guard.before_step(optimizer, step=2 * step + len(told)))
            optimizer.step()
            guard.after_step()
        reports.append((told[0], told[1]))
    return guard, reports, module


def test_the_other_optimizer_goes_back_with_the_one_in_trouble() -> None:
    _, reports, module = train(50.0, 60)
    details = [o.detail for leader, _ in reports for o in leader.outcomes if o.back_to is not None]
    assert details, "the rate of the leader loses it"
    assert all("optimizer 1 to step" in detail for detail in details)
    assert all(p.isfinite().all() and p.abs().max() < 10.0 for p in module.parameters())


@pytest.mark.parametrize(("rate", "lowered"), [(1e-2, False), (10.0, True)])
def test_who_goes_back_too_is_lowered_if_its_own_updates_have_replaced_its_weights(rate: float, lowered: bool) -> None:
    _, reports, _ = train(50.0, 60, rate)
    details = [o.detail for leader, _ in reports for o in leader.outcomes if o.back_to is not None]
    assert details and any("optimizer 1 at learning rate" in detail for detail in details) is lowered
    used = [follower.statistics.rate for _, follower in reports[-20:]]
    assert all(one < 0.2 * rate for one in used) if lowered else used == [rate] * 20


def test_no_other_treatment_begins_while_one_is_on_trial() -> None:
    guard, _, _ = train(50.0, 60)
    spans = sorted((t.opened, t.closed) for incident in guard.incidents for t in incident.trials)
    assert spans
    assert all(closed <= opened for (_, closed), (opened, _) in itertools.pairwise(spans))


def test_two_that_are_well_are_left_alone() -> None:
    guard, reports, _ = train(0.1, 60)
    assert not guard.incidents
    assert all(not report.outcomes for pair in reports for report in pair)
