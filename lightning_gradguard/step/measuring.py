"""Gradients -> statistics: what is measured at a step, and what is learned from measuring."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from torch import Tensor

from lightning_gradguard.attribution.optimizer_state import spoilt
from lightning_gradguard.history.baseline import OVERRUN
from lightning_gradguard.history.sample import RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.statistics.measure import measure, scale_of, with_update
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.run import Run
from lightning_gradguard.step.witnessing import witness


def measured(run: Run, track: OptimizerTrack, inputs: StepInputs) -> RemedyContext:
    """Measure the gradients, and return all that remedies work with."""
    loss, scaler = inputs.loss, inputs.scaler
    scaled = scaler is not None and scaler.is_enabled()
    scale = scale_of(track.optimizer, scaler)
    names, grads = track.trained.gradients()
    run.recorder.show(track.steps, track.number, track.index, names, grads, scale)
    witness(run, track, names, grads, scale)
    statistics = measure(
        names,
        grads,
        step=track.number,
        loss=loss if run.collectives.size == 1 else partial(joint_loss, run, track, loss),
        rate=track.rate(),
        scale=scale,
        sharded=track.sharded,
        scaled=scaled,
    )
    return context_of(run, track, _look_closer(run, track, statistics, scale), scaler if scaled else None, scale)


def joint_loss(run: Run, track: OptimizerTrack, loss: Tensor | float | None, norm: float) -> float | None:
    """Return the loss of a step as all processes see it, None while it can wait; learn those that have waited."""
    earlier, now = track.joint_loss.of(loss, run.collectives, track.steps, lambda: _can_wait(track, norm))
    track.baseline.losses.recall(earlier)
    return now


def _can_wait(track: OptimizerTrack, norm: float) -> bool:
    """Return, alike on all processes, whether no second witness is called for at a step with this norm."""
    known = track.baseline
    if track.incident is not None or known.count < RECENT or known.outsized(norm, track.rate()):
        return False
    # While a run is young its limit is wide, so the loss is asked long before the norm reaches it.
    return norm <= (track.limit() if known.count >= THIN_HISTORY else OVERRUN * known.norms.typical)


def _look_closer(run: Run, track: OptimizerTrack, statistics: GradientStatistics, scale: float) -> GradientStatistics:
    """Measure also what is worth its cost in few steps only."""
    known, growth = track.baseline, track.treatment.signal.growth
    if known.asks_for_update(statistics.norm, statistics.loss, statistics.rate):
        rescaled = track.remedies.rescaled
        first = track.snapshots.first if known.count == 1 and not track.sharded else None
        statistics = with_update(
            statistics,
            run.module,
            {name: p for name, p in track.parameters.items() if name not in rescaled},
            track.optimizer,
            scale=scale,
            factor=track.remedies.lr_factor,
            first=None if first is None else first.parameters,
            loaded=not track.untouched,
        )
        known.updates.look(statistics.rate)
    if growth is not None and track.fresh:
        statistics = dataclasses.replace(statistics, growth=growth)
    if track.watch.tampered:
        largest = math.exp(known.norms.high_water)
        found = spoilt(track.optimizer, track.parameters, track.snapshots.latest, largest)
        statistics = dataclasses.replace(statistics, spoilt=found)
    return statistics


def context_of(
    run: Run, track: OptimizerTrack, statistics: GradientStatistics, scaler: Any = None, scale: float = 1.0
) -> RemedyContext:
    """Return what remedies work with where the gradients have been measured."""
    assert run.running is not None
    return RemedyContext(
        module=run.module,
        optimizer=track.optimizer,
        parameters=track.parameters,
        snapshots=track.snapshots,
        running=run.running,
        statistics=statistics,
        scaler=scaler,
        progress=lambda: track.baseline.progress,
        reach=lambda rate: track.baseline.updates.reach(LARGE, rate),
        remaining=run.remaining,
        grad_scale=scale,
    )
