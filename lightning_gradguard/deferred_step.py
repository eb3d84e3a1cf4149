"""One step as its device judges it, without waiting, and what the host learns of it before the next one.

One idea: a calm step costs no wait. Only where nothing is amiss: young runs, incidents, snapshots and everything
unusual are judged by the host, which waits for them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_gradguard.attribution.batch import largest
from lightning_gradguard.device_gate import Bounds, Flight
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Case
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import GENTLE, Action, GradientStatistics, Outcome, Suspect, Verdict
from lightning_gradguard.statistics.collectives import Own
from lightning_gradguard.statistics.measure import still_scaled
from lightning_gradguard.statistics.norms import global_norm
from lightning_gradguard.step import Run, StepInputs, StepReport
from lightning_gradguard.step.deferrable import deferrable
from lightning_gradguard.step.judging import heard, suspects_of
from lightning_gradguard.step.keeping import keep
from lightning_gradguard.step.learning import accept, reject
from lightning_gradguard.step.measuring import context_of, joint_loss
from lightning_gradguard.step.passing import look_for_life
from lightning_gradguard.step.recording import note, notice
from lightning_gradguard.step.treating import conclude
from lightning_gradguard.step.witnessing import witness

DEVICES = frozenset({"cuda"})
"""Devices that work on while the host does something else, and that can compare in float64."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a step when the next one is about to be made.

    Args:
        statistics: Its gradients.
        coefficient: What the device multiplied them by: 1 untouched, 0 skipped.
        accused: The evidence that this process has against its batch, or None.
        batch_index: The number of that batch.
        through: How large against the weights the update can be, where it was let through though its norm was above
            the limit; None of others.
    """

    statistics: GradientStatistics
    coefficient: float
    accused: Own[Suspect | None]
    batch_index: int | None
    through: float | None = None

    @property
    def asked(self) -> GradientStatistics:
        """What detectors are asked about; nothing is learned of an update that was only foretold."""
        through = self.through
        return self.statistics if through is None else dataclasses.replace(self.statistics, update_ratio=through)


class DeferredStep:
    """The way that a step of a calm run takes on an accelerator; all else is left to the host.

    Args:
        run: What the steps of all optimizers have in common.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def leave(self, track: OptimizerTrack, inputs: StepInputs) -> StepReport | None:
        """Let the device judge a step in whose run nothing is amiss; return None where the host must."""
        if track.device not in DEVICES or self._run.halts:
            return None  # A run that ends before its weights are touched waits for each answer.
        if self._run.accused is not None and self._run.accused.now:
            return None
        act = self._run.acts
        found = deferrable(track, act=act, awaited=self._run.investigation.awaits(track.index))
        if found is None or track.last is None:
            return None
        scaler = inputs.scaler
        scaled = scaler is not None and scaler.is_enabled()
        scale = scaler._get_scale_async() if still_scaled(track.optimizer, scaler) else None
        if scale is not None and track.steps % self._run.recorder.log_every == 0:
            return None  # Who is shown the gradients has to know their scale, which is waited for.
        names, grads = found
        self._run.recorder.show(track.steps, track.number, track.index, names, grads, 1.0)
        witness(self._run, track, names, grads, 1.0 if scale is None else scale)
        passed = self._launch(track, names, grads, inputs, act=act, scaled=scaled, scale=scale)
        if act:
            context = context_of(self._run, track, track.last)
            context.running.accept(passed=passed)
            track.remedies.before_update(context)
            track.gate.settle()  # A lasting remedy may clip too.
        return StepReport(track.last)

    def _launch(
        self,
        track: OptimizerTrack,
        names: tuple[str, ...],
        grads: list[Tensor],
        inputs: StepInputs,
        *,
        act: bool,
        scaled: bool,
        scale: Tensor | None,
    ) -> Tensor:
        """Leave a step to the device; return whether its update is made, as a tensor there."""
        limit, device, loss = track.limit(), grads[0].device, inputs.loss
        there = loss if isinstance(loss, Tensor) and loss.device == device else None
        known = None if there is not None or loss is None else float(loss)
        peaks = largest(inputs.batch, device) if inputs.batch is not None else ()
        bounds, through = _bounds(track, limit)
        flight = Flight(track.number, names, known, track.rate(), inputs.batch_index, scaled, limit, through)
        judged = track.gate.judge(
            track.optimizer,
            grads,
            bounds,
            act=act,
            sharded=track.sharded,
            scaled=scaled,
            scale=scale,
        )
        track.gate.send(judged, loss=there, peaks=peaks, flight=flight)
        return judged.made

    def _collect(self, track: OptimizerTrack) -> Finding | None:
        """Return what the device found at the last step, if it was left to it."""
        reading = track.gate.collect() if track.gate.waiting else None
        if reading is None or reading.flight is None:
            return None
        flight, norm = reading.flight, global_norm(reading.norms)
        loss = flight.loss if reading.loss is None else reading.loss
        if self._run.collectives.size > 1:
            loss = joint_loss(self._run, track, loss, norm)
        # Elements can no longer be counted: the gradients are gone.
        bad = (
            ()
            if math.isfinite(norm)
            else tuple((flight.names[i], 0) for i in np.flatnonzero(~np.isfinite(reading.norms)))
        )
        statistics = GradientStatistics(
            flight.step,
            flight.names,
            reading.norms,
            norm,
            loss,
            rate=flight.rate,
            nonfinite=bad,
            scaled=flight.scaled,
        )
        accused = Own(track.batches.accuse_peaks(reading.peaks))
        through = flight.update_ratio if norm > flight.limit else None
        return Finding(statistics, reading.coefficient, accused, flight.batch_index, through)

    def before(self, track: OptimizerTrack) -> None:
        """Catch up before a step whose forward pass is over: layers are then measured in the next one's."""
        awaited = self._run.investigation.awaits(track.index)
        self.catch_up(track)
        if self._run.investigation.awaits(track.index) and not awaited:
            self._run.investigation.postpone(track.index)

    def catch_up(self, track: OptimizerTrack) -> None:
        """Learn what the device found and did at the last step, if it was left to it."""
        found = self._collect(track)
        if found is None:
            return
        statistics, alarm = found.statistics, None
        track.steps += 1
        track.send_rate()
        for verdict in heard(track, found.asked):
            if not verdict.alarm:
                notice(self._run, track, statistics.step, verdict)
            elif verdict.of_one_step and not verdict.examine:
                alarm = verdict
            elif not verdict.stands_out or found.accused.known(self._run.collectives) is not None:
                # What asks for more than first aid is asked again, of a step that the host has in hand.
                track.watch_closely()
            else:
                track.check_up = track.odd_loss_interval.due(track.steps)
        if alarm is not None:
            self._first_aid(track, found, alarm)
        elif statistics.finite:
            if track.baseline.may_overrun(statistics.norm, statistics.loss, statistics.rate):
                track.watch_closely()  # The host measures the next one before it is made.
            track.policy.rest(statistics.step)
            accept(track, statistics, math.inf)
            look_for_life(self._run, track)
        elif statistics.scaled:
            reject(track, statistics)  # The overflow that a GradScaler expects, and has skipped.
        note(self._run, track, statistics, found.coefficient, alarm=alarm is not None)

    def _first_aid(self, track: OptimizerTrack, found: Finding, verdict: Verdict) -> None:
        """Record what the device has done about a bad step; from here on the host judges each at once."""
        statistics, limit = found.statistics, track.limit()
        named = suspects_of(self._run, track, statistics, (), found.accused)
        # A damaged layer is repaired by the host, at the step that it has in hand.
        batch = [s for s in named if s.is_batch]
        decision = track.policy.decide(verdict, statistics, batch, Case(track.baseline, track.remedies.can))
        decision = dataclasses.replace(decision, remedies=track.remedies.chosen(decision.remedies))
        outcomes: tuple[Outcome, ...] = ()
        if self._run.acts and found.coefficient < 1.0:
            outcomes = (_outcome(track, found),)
            decision = dataclasses.replace(decision, remedies=(outcomes[0].remedy,))
        action = Action(statistics.step, verdict, decision, outcomes)
        made = found.coefficient > 0.0
        bundle, named = keep(self._run, track, statistics, verdict, named, deferred=True, made=made)
        conclude(self._run, track, statistics, action, named, found.batch_index, limit, bundle=bundle)


def _bounds(track: OptimizerTrack, limit: float) -> tuple[Bounds, float | None]:
    """Return what the device lets through, and how large the update may be of a norm above the limit, if any is let."""
    updates, most = track.baseline.updates, GENTLE * limit
    harmless = min(most, updates.reach(LARGE, track.rate()) if updates.ratio <= LARGE else 0.0)
    if harmless <= limit:
        return Bounds(limit, track.target(limit), GENTLE), None
    # No clip and no skip for what leaves the weights nearly as they are; the host looks at batch and layers afterwards.
    return Bounds(harmless, track.target(limit), most / harmless), LARGE


def _outcome(track: OptimizerTrack, found: Finding) -> Outcome:
    """Return what the device has done, as the outcome of the remedy that would have done it."""
    coefficient, norm = found.coefficient, found.statistics.norm
    by, *_ = track.remedies.chosen((Act.CLIP if coefficient > 0.0 else Act.SKIP,))
    if coefficient > 0.0:
        detail = f"norm {norm:.3g} clipped to {norm * coefficient:.3g} on the device"
    else:
        detail = "skipped the step on the device: its gradients did not count"
    return Outcome(by, True, detail, (), coefficient)
