"""When windows are sent, and what they say of a GradScaler's overflow."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from lightning_gradguard import Guard
from lightning_gradguard.diagnostics import Sink, wording
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.records import Incident, TrialRecord, Window
from tests.builders import mlp, regression


class Kept(Sink):
    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.seen: list[int] = []

    def window(self, window: Window) -> None:
        self.windows.append(window)

    def gradients(self, step, optimizer, names, grads, grad_scale) -> None:  # type: ignore[no-untyped-def]
        assert len(names) == len(grads) and all(isinstance(g, torch.Tensor) for g in grads)
        self.seen.append(step)


def run(steps: int, *, scaler: torch.amp.GradScaler | None = None, log_every: int = 20, **options: Any) -> Kept:
    sink, model = Kept(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, sinks=[sink], log_every=log_every, **options)
    for x, y in regression(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        if scaler is None:
            loss.backward()
            guard.before_step(optimizer, loss=loss)
            optimizer.step()
            continue
        scaler.scale(8 * loss).backward()
        scaler.unscale_(optimizer)
        guard.before_step(optimizer, loss=loss, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    guard.flush()
    guard.close()
    return sink


def test_the_first_steps_have_windows_of_their_own() -> None:
    windows = run(400).windows
    widths = [w.step - w.first_step + 1 for w in windows]
    assert widths[:9] == [1] * 9 and widths[-2] == 20 and widths == sorted(widths[:-1]) + widths[-1:]
    assert sum(widths) == 400


def test_sinks_see_the_gradients_once_in_log_every_steps() -> None:
    assert run(100, log_every=20).seen == [0, 20, 40, 60, 80]


def test_the_overflow_that_a_grad_scaler_expects_is_counted_as_such() -> None:
    # A scale of 1e38 overflows until it has been halved a few times; the scaler skips these steps itself.
    sink = run(30, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000))
    last = sink.windows[-1]
    assert 1 <= last.overflows <= 15 and last.skipped == 0 and last.incidents == 0
    assert sink.windows[0].norm_peak == 0.0, "a window of nothing but an overflow has no norm"
    assert all(w.norm_peak < 1e30 and not w.layer_nonfinite.any() for w in sink.windows)


@pytest.mark.parametrize("mode", ["guard", "watch"])
def test_overflows_that_never_end_are_trouble_and_not_counted_as_routine(mode: str) -> None:
    """Watching changes nothing, so what was done does not tell one from the other."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.9999)
    last = run(40, scaler=scaler, mode=mode).windows[-1]
    assert last.overflows < 20 and last.incidents == 1 and not math.isfinite(last.norm_peak)


def spoilt(guard: Guard, sink: Kept, bad: range, steps: int = 400) -> list[Window]:
    """Train on batches of which those in ``bad`` hold NaN; return the windows."""
    model = guard.module
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, (x, y) in enumerate(regression(steps)):
        optimizer.zero_grad()
        loss = (model(x * (math.nan if step in bad else 1.0)) - y).square().mean()
        loss.backward()
        if guard.before_step(optimizer, loss=loss).stop:
            break
        optimizer.step()
    guard.flush()
    guard.close()
    return sink.windows


def test_a_window_ends_where_an_incident_begins() -> None:
    """What was healthy must not be drawn in the colours of what comes after it."""
    sink = Kept()
    windows = spoilt(Guard(mlp(), sinks=[sink]), sink, range(301, 311))
    bad = [w for w in windows if not math.isfinite(w.norm_peak)]
    assert (bad[0].first_step, bad[0].step, bad[0].peak_step) == (301, 301, 301)
    assert all(not w.layer_nonfinite.any() for w in windows if w.step < 301)
    assert [later.first_step - earlier.step for earlier, later in pairwise(windows)] == [1] * (len(windows) - 1)
    assert bad[-1].step >= 310 and all(w.peak_step == w.first_step for w in bad), (
        "of several the first is where it began"
    )


def test_windows_know_the_losses_and_the_rate() -> None:
    sink = Kept()
    windows = spoilt(Guard(mlp(), sinks=[sink]), sink, range(0))
    assert all(w.loss_low <= w.loss_mean <= w.loss_high and math.isfinite(w.loss_high) for w in windows)
    assert {w.rate for w in windows} == {0.01} and {w.rate_bad for w in windows} == {math.inf}


def test_a_run_that_is_ended_says_when_and_one_that_goes_on_does_not() -> None:
    guard = Guard(mlp())
    spoilt(guard, Kept(), range(301, 500), steps=500)
    (one,) = guard.incidents
    assert one.stopped == one.closed == one.actions[-1].step and one.actions[-1].decision.exhausted
    guard = Guard(mlp(), on_exhausted="continue")
    spoilt(guard, Kept(), range(301, 500), steps=450)
    assert all(one.stopped is None for one in guard.incidents)


@pytest.mark.parametrize(
    ("outcome", "after", "helped"),
    [
        ("kept", 0.5, True),
        ("kept", 3.0, None),
        ("kept", math.nan, None),
        ("taken back", 0.5, False),
        ("calm", 0.5, None),
    ],
)
def test_an_incident_has_helped_only_if_the_loss_is_the_better_for_what_was_kept(
    outcome: str, after: float, helped: bool | None
) -> None:
    recorder = Recorder([], 50)
    recorder.incidents = [Incident(1, 0, 40, "divergence")]
    trial = TrialRecord("learning rate", ("rollback", "backoff"), 40, 56, outcome, 0.5, 3.0, after)
    recorder.close_incident(recorder.incidents[0], 56, [trial])
    (closed,) = recorder.incidents
    assert closed.helped is helped
    assert (wording.state(closed) == "kept") is (outcome == "kept" and helped is None)


def test_a_run_that_is_only_out_of_the_trouble_has_not_been_helped() -> None:
    recorder = Recorder([], 50)
    recorder.incidents = [Incident(1, 0, 40, "divergence")]
    trial = TrialRecord("learning rate", ("rollback", "backoff"), 40, 56, "kept", 0.5, 3.0, 2.3)
    recorder.close_incident(recorder.incidents[0], 56, [trial], in_vain=True)
    (closed,) = recorder.incidents
    assert closed.helped is None and wording.state(closed) == "kept"
    assert "out of the trouble, not shown to be better than before it" in wording.result(closed)


def test_all_incidents_count_although_the_newest_alone_are_kept() -> None:
    recorder = Recorder([], 50)
    recorder.incidents = [Incident(number, 0, 10 * number, "sudden", closed=10 * number) for number in range(5, 205)]
    assert len(recorder.incidents) == 200 and recorder.count == 204


def test_the_last_steps_have_a_window_when_the_guard_is_closed() -> None:
    sink, model = Kept(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, sinks=[sink], log_every=20)
    for x, y in regression(93):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        guard.before_step(optimizer)
        optimizer.step()
    guard.close()
    assert sink.windows[-1].step == 92
