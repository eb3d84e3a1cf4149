"""Running statistics of normalisation layers."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradguard.running import RunningStatistics
from tests.builders import mlp, same


def test_the_last_accepted_values_come_back_in_place() -> None:
    module = mlp(norm=True)
    running = RunningStatistics(module)
    module(torch.randn(4, 8))
    accepted = [b.clone() for b in module.buffers()]
    running.accept()
    addresses = [b.data_ptr() for b in module.buffers()]
    for _ in range(3):
        module(torch.full((4, 8), torch.inf))
    running.restore()
    assert same(accepted, [*module.buffers()])
    assert addresses == [b.data_ptr() for b in module.buffers()]


def test_only_what_is_broken_is_mended() -> None:
    module = mlp(norm=True)
    running = RunningStatistics(module)
    module(torch.randn(4, 8))
    moved = [b.clone() for b in module.buffers()]
    running.mend()
    assert same(moved, [*module.buffers()])
    module(torch.full((4, 8), torch.nan))
    running.mend()
    assert all(b.isfinite().all() for b in module.buffers())


def test_layers_without_running_statistics_are_no_trouble() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4), nn.InstanceNorm1d(4))
    running = RunningStatistics(module)
    running.accept()
    running.mend()
    running.restore()
