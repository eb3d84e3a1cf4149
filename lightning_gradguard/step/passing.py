"""A step without alarm: it is let through, and learned from."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradguard.history.sample import FEW
from lightning_gradguard.layers.names import compiled
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.step.bystanding import found, mend
from lightning_gradguard.step.copying import copy, worth_copying
from lightning_gradguard.step.learning import accept, reject
from lightning_gradguard.step.recording import close
from lightning_gradguard.step.run import Run
from lightning_gradguard.treatment import LIFE

MEASURE_BATCH_EVERY = 100
"""Steps between two batches whose largest elements are measured where no snapshot is taken."""


def let_pass(run: Run, track: OptimizerTrack, context: RemedyContext, batch: Any) -> None:
    """Let the step through, learning from it."""
    statistics = context.statistics
    if not statistics.finite:
        # The overflow that a GradScaler expects: it skips the step and lowers its scale by itself.
        reject(track, statistics)
        if run.acts:
            context.running.repair()
            mend(run, track, found(run))
        tell_of_poison(run, context)
        return
    _rest(run, track, statistics)
    if run.acts:
        if hidden(run, track, context, batch):
            batch = None  # It is no measure of a healthy one.
        # A layer that was repaired may have been damaged again since.
        if not track.check_up:
            _keep(run, track, statistics, batch)
        track.remedies.before_update(context)
    elif run.halts:
        # What a bad step is compared with, and put back to; nothing is changed meanwhile.
        context.running.remember()
        if batch is not None and (track.steps <= FEW or track.steps % MEASURE_BATCH_EVERY == 0):
            track.batches.remember(batch)
    accept(track, statistics, math.inf)
    look_for_life(run, track)
    _look_for_nan(run, track)


def _rest(run: Run, track: OptimizerTrack, statistics: GradientStatistics) -> None:
    """Note a step without alarm, which may keep the treatment on trial and close the incident."""
    known, treatment, step = track.baseline, track.treatment, statistics.step
    ordinary = track.incident is not None and known.ordinary(statistics.norm, statistics.loss)
    rested = track.policy.rest(step, ordinary=ordinary, trial=treatment.trial is not None)
    if treatment.trial is not None and treatment.keep_if_cured(step, known.count, known.losses.untrained):
        rested = True
        track.policy.end_episode(step)
    if rested and track.incident is not None:
        # The cause that damaged a repaired layer may still be there.
        track.check_up = Act.REINITIALIZE in track.remedies.done_by(track.incident.remedies)
        close(run, track, step)


def _keep(run: Run, track: OptimizerTrack, statistics: GradientStatistics, batch: Any) -> None:
    """Copy the state from before this step if it is worth it, and note how large a healthy batch is."""
    step = track.steps - 1
    if batch is not None and (step < FEW or track.batches.knows_few):
        track.batches.remember(batch)
    if not worth_copying(track, step, statistics):
        return
    if run.running is not None and run.running.look():
        return  # What has leapt is no state to go back to, before the next batch has told whether it is right.
    if batch is not None:
        track.batches.remember(batch)
    copy(run, track, step)


def look_for_life(run: Run, track: OptimizerTrack) -> None:
    """Have layers measured in the next batch where the loss is flat, at growing intervals."""
    known = track.baseline
    if track.treatment.resigned:
        track.treatment.resigned = not known.losses.at_best
    if not track.treatment.signal.time_to_look(known.count):
        return
    put_out = known.put_out
    flat = known.losses.flat or known.losses.unmoved or put_out
    track.snapshots.pinned = track.snapshots.pinned and (flat or known.count < 2 * LIFE)
    # A compiled one would run in eager mode meanwhile, which rounds otherwise.
    if flat and (track.incident is None or put_out) and not compiled(run.module):
        run.investigation.arm(track.index, run.module, backward=False)


def _look_for_nan(run: Run, track: OptimizerTrack) -> None:
    """Have layers measured in the next batch, too, where gradients that are not finite come now and then.

    The batch after such a one tells nothing. The first is left alone, and a culprit is looked for until one is named.
    """
    incident = track.incident
    if incident is None or incident.blame or incident.alarms < 2 or math.isfinite(incident.actions[-1].verdict.value):
        return
    if not compiled(run.module):
        run.investigation.arm(track.index, run.module, backward=False)


def hidden(run: Run, track: OptimizerTrack, context: RemedyContext, batch: Any) -> bool:
    """Return whether a normalisation hid from the gradient what must not stay in its running statistics."""
    hid = context.running.accept(lambda: batch is not None and track.batches.accuse(batch) is not None)
    if hid:
        names = ", ".join(context.running.spoilt)
        run.recorder.say(track.number, "running", f"running statistics of {names} were NaN, inf or huge; put back")
    if context.running.leaps.told:
        tell_of_leaps(run, track.number)
    return hid


def tell_of_leaps(run: Run, step: int) -> None:
    """Tell of running statistics that had leapt and were put back."""
    assert run.running is not None
    names, run.running.leaps.told = ", ".join(run.running.leaps.told), []
    told = f"running statistics of {names} were overwritten, as no batch has made them; put back"
    run.recorder.say(step, told, told)


def tell_of_poison(run: Run, context: RemedyContext) -> None:
    """Warn of a non-finite gradient that reaches the weights."""
    if run.acts and context.scaler is None:
        run.recorder.warn(
            "poison", "a gradient that is not finite reaches the weights: no remedy that skips a step applies"
        )
