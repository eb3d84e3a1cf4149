"""Running statistics that leap: what no batch has made of them is put back, and what a batch bears out stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.snapshots.leaps import WAITED
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from tests.builders import same


class Steps:
    """Training steps of a normalisation in the midst of a network."""

    def __init__(self, layer: nn.Module | None = None, *, frozen: bool = False) -> None:
        torch.manual_seed(0)
        self.layer: Any = nn.BatchNorm1d(4) if layer is None else layer
        self.network = nn.Sequential(nn.Identity(), self.layer)
        self.running = RunningStatistics(self.network)
        self.scale = 1.0
        for _ in range(50):
            self.take()
        if frozen:
            self.layer.eval()
            self.take()

    def take(self, *, skipped: bool = False) -> None:
        self.network[1](self.scale * torch.randn(64, 4))
        self.running.restore() if skipped else self.running.accept()

    def put_back(self) -> list[str]:
        return self.running.leaps.told

    def hooks(self) -> int:
        return len(self.layer._forward_pre_hooks)


def var(layer: Any) -> None:
    layer.running_var.fill_(1e6)


def mean(layer: Any) -> None:
    layer.running_mean.fill_(1e4)


def one(layer: Any) -> None:
    layer.running_var[2] = 1e6


def unseen(layer: Any) -> None:
    layer.running_var.data.fill_(1e6)


@pytest.mark.parametrize(
    ("write", "frozen"), [*((write, frozen) for write in (var, mean, one) for frozen in (False, True)), (unseen, True)]
)
def test_what_somebody_has_written_is_put_back(write: Callable[[Any], None], frozen: bool) -> None:
    steps = Steps(frozen=frozen)
    was = [buffer.clone() for buffer in (steps.layer.running_mean, steps.layer.running_var)]
    write(steps.layer)
    steps.take()
    steps.take()
    assert steps.put_back() == ["1"]
    assert steps.hooks() == 0
    for now, before in zip((steps.layer.running_mean, steps.layer.running_var), was, strict=True):
        assert torch.allclose(now, before, atol=0.2)
    remembered = [buffer.clone() for buffer in steps.layer.buffers()]
    steps.running.restore()
    assert same(remembered, [*steps.layer.buffers()])


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_that_the_batches_bear_out_stay(frozen: bool) -> None:
    """Weights that were loaded with their statistics."""
    steps = Steps(frozen=frozen)
    steps.scale = 1000.0
    steps.layer.load_state_dict(
        {**steps.layer.state_dict(), "running_mean": torch.zeros(4), "running_var": torch.full((4,), 1e6)}
    )
    for _ in range(5):
        steps.take()
    assert steps.put_back() == []
    assert steps.layer.running_var.min() > 1e5
    assert steps.hooks() == 0


@pytest.mark.parametrize("scale", [30.0, 1000.0, 1e5])
def test_data_of_a_new_scale_stay(scale: float) -> None:
    steps = Steps()
    steps.scale = scale
    for _ in range(20):
        steps.take()
    assert steps.put_back() == []
    assert steps.layer.running_var.min() > 0.5 * scale**2


def test_a_single_batch_that_is_far_larger_leaves_its_trace() -> None:
    steps = Steps()
    steps.scale = 1e5
    steps.take()
    steps.scale = 1.0
    steps.take()
    assert steps.put_back() == []
    assert steps.layer.running_var.min() > 1e7


def reset(layer: Any) -> None:
    layer.reset_running_stats()


@pytest.mark.parametrize("write", [reset, lambda layer: layer.running_var.mul_(50.0)])
def test_no_leap_is_seen_where_there_is_none(write: Callable[[Any], None]) -> None:
    steps = Steps()
    write(steps.layer)
    for _ in range(5):
        steps.take()
        assert steps.running.leaps.waiting == []
    assert steps.put_back() == []


def test_a_batch_of_evaluation_is_no_measure() -> None:
    steps = Steps()
    var(steps.layer)
    steps.take()
    steps.network.eval()
    steps.network(1000.0 * torch.randn(64, 4))
    steps.network.train()
    steps.take()
    assert steps.put_back() == ["1"]


def test_a_batch_whose_step_was_skipped_is_no_measure() -> None:
    steps = Steps()
    var(steps.layer)
    steps.take()
    steps.scale = 1000.0
    steps.take(skipped=True)
    steps.scale = 1.0
    steps.take()
    assert steps.put_back() == ["1"]


def test_a_layer_that_no_batch_comes_through_is_waited_for_so_long() -> None:
    steps = Steps()
    var(steps.layer)
    for _ in range(WAITED + 1):
        assert steps.put_back() == []
        steps.running.accept()
    assert steps.hooks() == 0
    assert steps.running.leaps.waiting == []


def test_at_the_end_what_somebody_has_written_is_put_back() -> None:
    steps = Steps()
    var(steps.layer)
    steps.take()
    steps.running.end()
    assert steps.put_back() == ["1"]
    assert steps.hooks() == 0


def test_hooks_are_taken_off() -> None:
    steps = Steps()
    var(steps.layer)
    steps.take()
    assert steps.hooks() == 1
    steps.running.leaps.drop()
    assert steps.hooks() == 0


@pytest.mark.parametrize("layer", [nn.InstanceNorm1d(4, track_running_stats=True), nn.BatchNorm1d(4).half()])
def test_what_cannot_be_told_is_left_alone(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    running = RunningStatistics(network)
    kind = next(layer.buffers()).dtype
    shape = (8, 4, 5) if isinstance(layer, nn.InstanceNorm1d) else (64, 4)

    def take() -> Tensor:
        out: Tensor = network(torch.randn(shape).to(kind))
        running.accept()
        return out

    take(), take()
    layer.running_var.fill_(3e4)  # type: ignore[union-attr, operator]
    take(), take()
    assert running.leaps.told == []


def test_devices_that_are_not_asked_at_every_step_are_looked_at() -> None:
    steps = Steps(frozen=True)
    views = steps.running._views
    before = torch.cat([view.view(torch.uint8) for view, *_ in views[torch.device("cpu")]])
    var(steps.layer)
    now = torch.cat([view.view(torch.uint8) for view, *_ in views[torch.device("cpu")]])
    steps.running.leaps.compare(views[torch.device("cpu")], before, now)
    assert len(steps.running.leaps.waiting) == 1
