"""Running statistics of normalisation layers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
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
    running.repair()
    assert same(moved, [*module.buffers()])
    module(torch.full((4, 8), torch.nan))
    running.repair()
    assert all(b.isfinite().all() for b in module.buffers())


def test_layers_without_running_statistics_are_no_trouble() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4), nn.InstanceNorm1d(4))
    running = RunningStatistics(module)
    running.accept()
    running.repair()
    running.restore()


def mixed() -> nn.ModuleList:
    """Return layers whose buffers are of four dtypes, and which hold what no constructor gives them."""
    layers = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(5).double(), nn.BatchNorm1d(7).half()])
    for number, buffer in enumerate(layers.buffers()):
        buffer.fill_(number + 2)
    return layers


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_one_element_that_is_not_finite_brings_back_every_kind(layer: int, value: float) -> None:
    layers = mixed()
    running = RunningStatistics(layers)
    layers[0].num_batches_tracked.fill_(9)
    assert running.accept() is False
    accepted = [b.clone() for b in layers.buffers()]
    layers[0].num_batches_tracked.fill_(10)
    layers[layer].running_mean[1] = value
    assert running.accept() is True
    assert same(accepted, [*layers.buffers()])


def test_huge_values_whose_squares_overflow_are_accepted_in_silence() -> None:
    layers = mixed()
    running = RunningStatistics(layers)
    layers[0].running_var.fill_(1e25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert running.accept() is False
    layers[0].running_var.fill_(1.0)
    running.restore()
    assert layers[0].running_var.tolist() == pytest.approx([1e25] * 3)


@pytest.mark.parametrize("passed", [False, True])
def test_a_device_tells_which_values_stay(passed: bool) -> None:
    layers = mixed()
    running = RunningStatistics(layers)
    before = [b.clone() for b in layers.buffers()]
    for buffer in layers.buffers():
        buffer.add_(1)
    after = [b.clone() for b in layers.buffers()]
    running.accept(passed=torch.tensor(passed))
    assert same(after if passed else before, [*layers.buffers()])


def test_a_graph_that_lives_on_finds_no_version_changed() -> None:
    module = mlp(norm=True)
    running = RunningStatistics(module)
    module(torch.randn(4, 8))
    versions = [b._version for b in module.buffers()]
    running.accept(passed=torch.tensor(True))
    running.restore()
    module[1].running_var.data.fill_(torch.nan)
    running.repair()
    assert versions == [b._version for b in module.buffers()]


def test_lazy_layers_that_a_bad_batch_has_awakened_begin_anew() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.LazyBatchNorm1d())
    running = RunningStatistics(module)
    module(torch.full((4, 8), torch.nan))
    running.restore()
    assert same(dict(nn.BatchNorm1d(4).named_buffers()), dict(module[1].named_buffers()))
