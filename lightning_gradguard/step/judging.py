"""Statistics -> verdict: the alarm of a step, if there is one, and whom the evidence speaks against.

One idea: whoever may raise an alarm is asked here, one after the other.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from lightning_gradguard.attribution.agreement import Asked, agreed, suspects
from lightning_gradguard.attribution.batch import BatchWitness, scales
from lightning_gradguard.attribution.displacement import FAR_APART
from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.attribution.signal import ALIKE, Signal, signal
from lightning_gradguard.attribution.two_kinds import KINDS_APART
from lightning_gradguard.detectors.bad_start import BadStart
from lightning_gradguard.detectors.overshoot import DEAD
from lightning_gradguard.history.sample import THIN_HISTORY
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import BATCH, Form, GradientStatistics, Suspect, Verdict
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.snapshots.when import TOO_LARGE_TO_COPY
from lightning_gradguard.statistics.collectives import Own
from lightning_gradguard.statistics.joint_loss import LOSS_EVERY
from lightning_gradguard.step.companions import another_on_trial
from lightning_gradguard.step.copying import copy, moved_too_far, ran_away
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.recording import notice
from lightning_gradguard.step.run import Run
from lightning_gradguard.treatment import LIFE, own_verdicts

EXAMINE_EVERY = 10
"""Steps between two examinations of the layers while trouble that has innocent causes goes on."""

Alarm = tuple[Verdict | None, tuple[Suspect, ...]]


def judge(run: Run, track: OptimizerTrack, context: RemedyContext, inputs: StepInputs) -> Alarm:
    """Return the alarm, if any, with its suspects; send what only reports to the sinks."""
    readings = run.investigation.readings(track.index)
    if run.acts and (alarm := _under_treatment(run, track, context.statistics, readings)) is not None:
        look = not own_verdicts.is_used_up(alarm)
        track.treatment.signal.seen = _signal(run, track, readings) if readings and look else None
        return alarm, _suspects(run, track, context.statistics, readings, inputs) if look else ()
    # Of shards each process would see its own, and gathering them costs more than a run that watches may spend.
    if not (run.acts or run.halts or track.sharded) and track.untouched and track.steps == 0:
        _examine_start(run, track, context.statistics, readings)
    if readings:
        context.statistics = _see(run, track, context.statistics, readings)
    statistics, track.baseline.alone = context.statistics, len(run.tracks) < 2
    for verdict in heard(track, statistics):
        if (verdict.diverges or verdict.examine) and another_on_trial(run, track):
            continue
        if verdict.endless and not (_time_to_examine(run, statistics.step) and ran_away(track)):
            verdict = dataclasses.replace(verdict, form="drift", alarm=False)  # Its unit may have grown, in health.
        if verdict.diverges and verdict.examine:
            track.treatment.resigned = False  # It has come to be far worse than what was given up.
        deaf = not (verdict.examine or verdict.unbounded) and (track.treatment.resigned or _actors(run, track))
        trial = track.treatment.trial
        if verdict.diverges and (deaf or (trial is not None and trial.has_just_begun)):
            continue
        if not verdict.alarm:
            notice(run, track, statistics.step, verdict)
        elif not verdict.examine:
            return verdict, _suspects(run, track, statistics, readings, inputs)
        elif found := _look(run, track, statistics, readings, inputs, verdict):
            return verdict, found
        elif verdict.diverges and _time_to_examine(run, statistics.step) and moved_too_far(track):
            return verdict, ()
    if run.acts and track.baseline.count < THIN_HISTORY and (large := _two_kinds(run, track, statistics, inputs)):
        return large
    return _check_up(run, track, statistics) if track.check_up else (None, ())


def heard(track: OptimizerTrack, statistics: GradientStatistics) -> list[Verdict]:
    """Ask every detector until one raises an alarm; the alarm, if any, comes last."""
    optimizer = track.optimizer
    if statistics.finite and isinstance(optimizer, torch.optim.LBFGS) and optimizer.param_groups[0]["line_search_fn"]:
        return []  # It tries points along a line before it takes one, and what it finds there is no trouble of the run.
    return track.detectors.judge(statistics, track.baseline)


def _under_treatment(
    run: Run, track: OptimizerTrack, found: GradientStatistics, readings: tuple[LayerReading, ...]
) -> Verdict | None:
    """Return the alarm that a treatment under way raises at a step, or None."""
    if track.treatment.signal.looking is not None:
        return track.treatment.signal.alarm()
    mean = run.collectives.mean if run.collectives.size > 1 else None
    if track.remedies.at_work and (told := track.remedies.finish(mean)) is not None:
        # From here on this is the beginning that a lower rate goes back to.
        copy(run, track, track.steps)
        return own_verdicts.used_up(found, told)
    trial = track.treatment.trial
    if readings and trial is not None and trial.repairs:
        varies = _signal(run, track, readings).variation
        if varies is not None and varies < ALIKE:
            return own_verdicts.still_dead(trial, varies)
    return own_verdicts.of_trial(trial, found, track.baseline)


def _see(
    run: Run, track: OptimizerTrack, statistics: GradientStatistics, readings: tuple[LayerReading, ...]
) -> GradientStatistics:
    """Note what becomes of the signal in a run without trouble: first its growth, later whether it varies."""
    if track.steps == 0 and track.untouched:
        track.treatment.signal.begin(_signal(run, track, readings))
        return statistics
    signal, put_out = _signal(run, track, readings), track.baseline.put_out
    varies = signal.answers if put_out else signal.variation
    if varies is None or (track.incident is not None and not put_out):
        return statistics
    if (put_out and varies < ALIKE) or (track.baseline.losses.unmoved and track.treatment.signal.collapsed(signal)):
        varies = 0.0  # What is certain of its answer up to a hundredth gives one answer.
    track.treatment.signal.dead = varies < DEAD
    track.baseline.deceived = track.baseline.deceived or (track.treatment.signal.dead and put_out)
    if track.baseline.count >= 2 * LIFE:
        track.snapshots.pinned = track.snapshots.pinned and track.treatment.signal.dead
    return dataclasses.replace(statistics, variation=varies)


def _examine_start(
    run: Run, track: OptimizerTrack, statistics: GradientStatistics, readings: tuple[LayerReading, ...]
) -> None:
    """Examine the layers of a run that only watches at its first step: no copy of them will be there later."""
    track.begins_from(track.parameters.values())
    # Of an optimizer that is met at its first step the batch has been missed: its weights have to tell by themselves.
    found = suspects_of(run, track, statistics, readings, Own(None), first=True)
    track.at_start = found, _signal(run, track, readings) if readings else None


def _signal(run: Run, track: OptimizerTrack, readings: tuple[LayerReading, ...]) -> Signal:
    if len(run.tracks) > 1:
        # What another optimizer's layers make of the signal is no fault of this one.
        own = {layer_of(name) for name in track.parameters}
        readings = tuple(reading for reading in readings if reading.layer in own)
    return agreed(signal(readings), run.collectives)


def _actors(run: Run, track: OptimizerTrack) -> bool:
    """Return whether the loss is an actor's: no measure, or one of several that has been below zero. It may rise."""
    signed = len(run.tracks) > 1 and track.baseline.losses.best_level < 0.0
    return (signed or not track.baseline.loss_tells) and not track.treatment.signal.dead


def _two_kinds(run: Run, track: OptimizerTrack, statistics: GradientStatistics, inputs: StepInputs) -> Alarm | None:
    """Return the alarm about a young run's batch that is of a corrupt kind, or None."""
    if inputs.batch is None or not statistics.finite or run.collectives.size > 1:
        return None  # Each process has batches of its own, and would have to be asked at every step.
    peaks = scales(inputs.batch)
    if not all(map(math.isfinite, peaks)) or not track.two_kinds.large(statistics.norm, peaks):
        return None
    track.batches = BatchWitness()
    for seen in track.two_kinds.small:
        track.batches.learn(list(seen))
    reason = f"gradients and data are {KINDS_APART:.0f} x those of other batches"
    form: Form = "cold-start" if track.two_kinds.accepted else "sudden"
    verdict = Verdict(form, BadStart.name, statistics.norm, statistics.norm / KINDS_APART, reason)
    return verdict, (Suspect(BATCH, math.log(KINDS_APART), reason),)


def _check_up(run: Run, track: OptimizerTrack, statistics: GradientStatistics) -> Alarm:
    """Look at the layers because that was asked for, though nothing is amiss in this step."""
    track.check_up = False
    found = _suspects(run, track, statistics, (), StepInputs(), "changes")
    if not found or found[0].score <= FAR_APART:
        return None, ()
    reason = f"{found[0].layer} is damaged, though norm and loss do not show it"
    return Verdict("sudden", "check-up", statistics.norm, track.baseline.norms.typical, reason, examine=True), found


def _look(
    run: Run,
    track: OptimizerTrack,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    inputs: StepInputs,
    verdict: Verdict,
) -> tuple[Suspect, ...]:
    """Examine a step whose verdict may have a harmless cause; return the suspects, in nearly every case none."""
    single = verdict.stands_out
    weigh = track.odd_loss_interval.due(track.steps) if single else _time_to_examine(run, statistics.step)
    if not single and not weigh:
        return ()
    ask: Asked = "batch" if not weigh else "all" if verdict.drifts else "changes"
    found = _suspects(run, track, statistics, readings, inputs, ask)
    if any(not s.is_batch for s in found):
        alone, worst = single and track.alone(verdict), max(s.score for s in found if not s.is_batch)
        return found if not alone or worst > FAR_APART else ()
    if found and single:
        if statistics.norm <= TOO_LARGE_TO_COPY * track.baseline.norms.typical:
            return ()  # An update of the usual size harms nobody: data of heavy tails make such losses.
        if track.policy.may_skip:
            return found
        track.batches.remember(inputs.batch)  # So many in a row are no accident: the data have changed for good.
    if weigh and not single:
        notice(run, track, statistics.step, verdict)
    return ()


def _time_to_examine(run: Run, step: int) -> bool:
    # Several processes judge the loss once in a few steps only, and must not miss the turn by that.
    return step % EXAMINE_EVERY < (1 if run.collectives.size == 1 else LOSS_EVERY)


def _suspects(
    run: Run,
    track: OptimizerTrack,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    inputs: StepInputs,
    ask: Asked = "all",
) -> tuple[Suspect, ...]:
    found = (track.batches.accuse(batch) for batch, _ in inputs.batches if batch is not None)
    accused = Own(next((suspect for suspect in found if suspect is not None), None))
    return suspects_of(run, track, statistics, readings, accused, ask=ask)


def suspects_of(
    run: Run,
    track: OptimizerTrack,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    accused: Own[Suspect | None],
    *,
    ask: Asked = "all",
    first: bool = False,
) -> tuple[Suspect, ...]:
    """Return whom the evidence speaks against, worst first; ``first`` where the weights are those of a start."""
    return suspects(
        run.module,
        run.collectives,
        statistics,
        readings,
        accused,
        snapshots=track.snapshots,
        parameters=track.parameters,
        others=[name for other in run.tracks if other is not track for name in other.parameters],
        accepted=track.baseline.count,
        fresh=ask != "batch" and track.fresh and not track.baseline.losses.learned,
        sharded=track.sharded,
        ask=ask,
        first=first,
    )
