"""Gradients that were clipped before the guard sees them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.statistics.measure import scale_of
from tests.builders import mlp, regression


@pytest.mark.parametrize("early", [False, True], ids=["before_step, then clip", "clip, then before_step"])
def test_a_guard_that_sees_only_clipped_gradients_says_so_once(early: bool) -> None:
    network = mlp()
    optimizer, guard = torch.optim.SGD(network.parameters(), lr=0.001), Guard(network)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in regression(80):
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x), 100 * y).backward()
            if early:
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            guard.before_step(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    told = [str(w.message) for w in caught if "before clipping" in str(w.message)]
    assert len(told) == early and all("has the norm 0.5" in message for message in told)


def test_what_a_loop_has_unscaled_in_order_to_clip_is_not_divided_again() -> None:
    network = mlp()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(network(torch.ones(4, 8)).sum()).backward()
    assert scale_of(optimizer, scaler) == 1024.0
    scaler.unscale_(optimizer)
    assert scale_of(optimizer, scaler) == 1.0
    scaler.step(optimizer)
    scaler.update()
    assert scale_of(optimizer, scaler) == 1024.0
