"""A step without alarm: learned from, unless it must teach nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_gradguard.step.passing import let_pass, look_for_life
from lightning_gradguard.treatment import LIFE
from tests.step.loop import Loop


def test_what_is_let_through_is_learned_from() -> None:
    loop = Loop()
    count = loop.track.baseline.count
    let_pass(loop.run, loop.track, loop.measured(), None)
    assert loop.track.baseline.count == count + 1


def test_an_expected_overflow_teaches_nothing_and_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    loop = Loop()
    context = loop.measured()
    context.statistics = replace(context.statistics, norm=math.inf)
    context.scaler = torch.amp.GradScaler("cpu")
    count = loop.track.baseline.count
    let_pass(loop.run, loop.track, context, None)
    assert loop.track.baseline.count == count and not [w for w in recwarn if "GradGuard" in str(w.message)]


def test_who_lets_a_nan_through_warns_of_it() -> None:
    loop = Loop()
    context = loop.measured()
    context.statistics = replace(context.statistics, norm=math.nan)
    with pytest.warns(RuntimeWarning, match="reaches the weights"):
        let_pass(loop.run, loop.track, context, None)


def test_calm_closes_the_incident() -> None:
    loop = Loop()
    loop.step(math.nan)
    assert loop.track.incident is not None
    for _ in range(25):
        loop.step()
    assert loop.track.incident is None and loop.guard.incidents[0].closed is not None


def test_layers_are_looked_at_where_the_loss_stands_still() -> None:
    loop = Loop()
    for _ in range(200):
        loop.track.baseline.accept(1.0, 5.0)
    loop.track.treatment.signal.look_soon(0)
    assert not loop.run.investigation.awaits(0)
    look_for_life(loop.run, loop.track)
    assert loop.run.investigation.awaits(0) and not loop.track.treatment.signal.time_to_look(2 * LIFE - 1)


@pytest.mark.parametrize("last", [False, True])
def test_statistics_that_somebody_overwrites_are_put_back(last: bool) -> None:
    loop = Loop()
    layer = next(m for m in loop.network.modules() if isinstance(m, nn.BatchNorm1d))
    was = layer.running_var.clone()
    layer.running_var.fill_(1e6)
    loop.step()
    with pytest.warns(RuntimeWarning, match="overwritten, as no batch has made them"):
        loop.guard.finish() if last else loop.step()
    assert torch.allclose(layer.running_var, was, rtol=0.3, atol=0.3)
    assert loop.guard.incidents == ()
    assert not layer._forward_pre_hooks
