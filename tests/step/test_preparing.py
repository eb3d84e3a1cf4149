"""What is looked up before a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.step import StepInputs
from lightning_gradguard.step.preparing import prepare
from tests.step.loop import Loop


def test_parameters_that_were_added_are_known_and_the_norms_of_others_forgotten() -> None:
    loop = Loop()
    loop.network.add_module("more", more := nn.Linear(2, 2))
    loop.optimizer.add_param_group({"params": list(more.parameters())})
    prepare(loop.run, loop.track, StepInputs())
    assert {"more.weight", "more.bias"} <= loop.track.parameters.keys() and loop.track.baseline.count == 0


@pytest.mark.parametrize(("processes", "expected"), [(1, True), (2, False)])
def test_who_wrote_to_the_state_is_asked_by_one_process_only(processes: int, expected: bool) -> None:
    loop = Loop()
    for _ in range(3):
        with torch.no_grad():
            next(iter(loop.optimizer.state.values()))["momentum_buffer"].add_(0.0)
    loop.run.collectives = Collectives(processes)
    prepare(loop.run, loop.track, StepInputs())
    assert loop.track.watch.tampered is expected


def test_the_order_of_layers_is_learned_from_the_graph_once() -> None:
    loop = Loop(0)
    assert loop.track.order.to_follow
    prepare(loop.run, loop.track, StepInputs(loop.backward().detach()))
    assert loop.track.order.to_follow
    prepare(loop.run, loop.track, StepInputs(loop.backward()))
    assert not loop.track.order.to_follow
