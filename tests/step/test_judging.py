"""Who raises an alarm at a step, and which alarms are passed over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.detectors import LossSpike
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Trial
from lightning_gradguard.records import GradientStatistics, Suspect, Verdict
from lightning_gradguard.step import judging
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.judging import heard, judge
from tests.step.loop import BATCH, Loop, alarm


def speaking(monkeypatch: pytest.MonkeyPatch, *verdicts: Verdict) -> None:
    def said(track: OptimizerTrack, statistics: GradientStatistics) -> list[Verdict]:
        return list(verdicts)

    monkeypatch.setattr(judging, "heard", said)


def test_a_step_as_any_other_raises_none() -> None:
    loop = Loop()
    assert judge(loop.run, loop.track, loop.measured(), StepInputs()) == (None, ())


def test_a_nan_raises_one_whatever_the_batch() -> None:
    loop = Loop()
    verdict, suspects = judge(loop.run, loop.track, loop.measured(math.nan), StepInputs())
    assert verdict is not None and verdict.form == "non-finite" and suspects == ()


def test_an_optimizer_that_tries_points_is_asked_only_of_what_is_not_finite() -> None:
    loop = Loop()
    found = loop.measured().statistics
    wild = replace(found, norm=1e9)
    assert heard(loop.track, wild)
    loop.track.optimizer = torch.optim.LBFGS(loop.network.parameters())
    assert heard(loop.track, wild)
    loop.track.optimizer = torch.optim.LBFGS(loop.network.parameters(), line_search_fn="strong_wolfe")
    assert heard(loop.track, wild) == []
    assert heard(loop.track, replace(found, norm=math.nan))


def test_who_has_resigned_hears_no_divergence_more_unless_it_is_to_be_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    context = loop.measured()
    lost = alarm(context.statistics, "divergence")
    speaking(monkeypatch, lost)
    assert judge(loop.run, loop.track, context, StepInputs())[0] is lost
    loop.track.treatment.resigned = True
    assert judge(loop.run, loop.track, context, StepInputs()) == (None, ())


def test_who_has_resigned_hears_again_when_the_loss_is_far_above_what_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop()
    context = loop.measured()
    loop.track.treatment.resigned = True
    lost = alarm(context.statistics, "divergence")
    speaking(monkeypatch, replace(lost, examine=True), lost)
    assert judge(loop.run, loop.track, context, StepInputs())[0] is lost and not loop.track.treatment.resigned


def test_losses_from_before_a_treatment_do_not_speak_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    context = loop.measured()
    lost = alarm(context.statistics, "divergence")
    speaking(monkeypatch, lost)
    trial = loop.track.treatment.trial = Trial("learning rate", ("rollback", "backoff"), 1, trouble=[9.0])
    said = [judge(loop.run, loop.track, context, StepInputs())[0] for _ in range(3)]
    assert said == [None, None, lost] and len(trial.losses) == 3


@pytest.mark.parametrize(("found", "expected"), [((), False), ((Suspect("0", 2.0, "x"),), True)])
def test_what_has_innocent_causes_is_an_alarm_only_where_somebody_is_found(
    monkeypatch: pytest.MonkeyPatch, found: tuple[Suspect, ...], expected: bool
) -> None:
    loop = Loop()
    context = loop.measured()
    speaking(monkeypatch, alarm(context.statistics, examine=True))
    monkeypatch.setattr(judging, "suspects", lambda *args, **known: found)
    assert (judge(loop.run, loop.track, context, StepInputs())[0] is not None) is expected


def test_an_odd_batch_of_ordinary_gradients_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    context = loop.measured()
    speaking(monkeypatch, alarm(context.statistics, examine=True))
    monkeypatch.setattr(judging, "suspects", lambda *args, **known: (BATCH,))
    assert judge(loop.run, loop.track, context, StepInputs())[0] is None
    context.statistics = replace(context.statistics, norm=100 * loop.track.baseline.norms.typical)
    assert judge(loop.run, loop.track, context, StepInputs())[1] == (BATCH,)


@pytest.mark.parametrize(("best", "alone", "heeded"), [(-0.5, False, False), (0.5, False, True), (-0.5, True, True)])
def test_a_loss_below_zero_convicts_none_of_several_optimizers(
    monkeypatch: pytest.MonkeyPatch, best: float, alone: bool, heeded: bool
) -> None:
    """An actor's loss rises in health."""
    loop = Loop()
    if not alone:
        loop.guard.attach(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    context = loop.measured()
    loop.track.baseline.losses.best_level = best
    speaking(monkeypatch, alarm(context.statistics, "divergence"))
    assert (judge(loop.run, loop.track, context, StepInputs())[0] is not None) is heeded


@pytest.mark.parametrize(("kick", "treated"), [(3.0, True), (0.0, False)])
def test_weights_that_all_were_overwritten_are_put_back_though_no_layer_stands_out(kick: float, treated: bool) -> None:
    """Layers that saturate hide it from the gradient, and the update that follows is as small as ever."""
    draws = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    guard = Guard(network)
    guard.attach(optimizer)
    losses = []
    for step in range(160):
        if step == 80:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(kick * torch.randn(parameter.shape, generator=draws))
        x = torch.randn(64, 16, generator=draws)
        loss = nn.functional.cross_entropy(network(x), x[:, :4].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=x)
        optimizer.step()
        losses.append(float(loss))
    assert max(losses[-20:]) < 1.0
    assert [trial.treatment for incident in guard.incidents for trial in incident.trials] == [("rollback",)] * treated


@pytest.mark.parametrize(("score", "before", "heeded"), [(2.0, False, False), (4.0, False, True), (2.0, True, True)])
def test_where_a_loss_leaps_alone_a_layer_must_be_far_apart(
    monkeypatch: pytest.MonkeyPatch, score: float, before: bool, heeded: bool
) -> None:
    """A hard sample comes alone; what is damaged makes a hard one of each."""
    loop = Loop()
    context = loop.measured()
    limit = 2.0 * max(loop.track.baseline.losses.latest(9))
    speaking(monkeypatch, Verdict("sudden", LossSpike.name, 10.0 * limit, limit, "a loss", examine=True))
    monkeypatch.setattr(judging, "suspects", lambda *args, **known: (Suspect("0", score, "x"),))
    if before:
        loop.track.baseline.losses.accept(10.0 * limit)
    assert (judge(loop.run, loop.track, context, StepInputs())[0] is not None) is heeded
