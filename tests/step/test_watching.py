"""What a guard that only watches says it would have tried first is what one that acts tries first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.policy.act import FIRST_AID
from lightning_gradguard.records import Decision
from tests.builders import mlp, regression

AT_FAULT: dict[str, tuple[int, float, float]] = {
    "a layer at the start": (0, 1e3, 0.01),
    "the rate at the start": (0, 1.0, 50.0),
    "a layer later": (60, 1e3, 0.01),
    "a weight later": (60, math.nan, 0.01),
}
"""Step from which a layer is multiplied, its factor, and the learning rate."""


def first_treatment(mode: Any, at: int, factor: float, rate: float, *, attach: bool) -> Decision:
    torch.manual_seed(0)
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    guard = Guard(network, mode=mode)
    if attach:  # As under Lightning: the first batch is measured too.
        guard.attach(optimizer)
    for step, (x, y) in enumerate(regression(at + 10)):
        if step == at:
            with torch.no_grad():
                network[2].weight.mul_(factor)  # type: ignore[operator, union-attr]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=x)
        optimizer.step()
        guard.after_step()
    decisions = [action.decision for incident in guard.incidents for action in incident.actions]
    return next(one for one in decisions if not one.look and set(one.remedies) - FIRST_AID)


@pytest.mark.parametrize("attach", [True, False], ids=["attached before", "met at its first step"])
@pytest.mark.parametrize("fault", AT_FAULT)
def test_who_watches_says_what_a_guard_would_try_first(fault: str, attach: bool) -> None:
    acting, watching = (first_treatment(mode, *AT_FAULT[fault], attach=attach) for mode in ("guard", "watch"))
    assert (watching.remedies, watching.cause) == (acting.remedies, acting.cause)
