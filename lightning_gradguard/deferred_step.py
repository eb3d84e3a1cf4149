"""One step as its device judges it, and what the host learns of it when the next one is about to be made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from lightning_gradguard import deferred
from lightning_gradguard.attribution.investigation import suspects
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Case
from lightning_gradguard.records import Action, Verdict
from lightning_gradguard.statistics.measure import overruns
from lightning_gradguard.step import Step, StepReport


class DeferredStep:
    """The way that a step of a calm run takes on an accelerator; all else is left to ``host``.

    Args:
        host: The way that every other step takes.
    """

    def __init__(self, host: Step) -> None:
        self.host = host

    def leave(
        self,
        track: OptimizerTrack,
        loss: Tensor | float | None,
        batch: Any,
        batch_index: int | None,
        step: int | None,
        scaler: Any,
    ) -> StepReport | None:
        """Let the device judge a step in whose run nothing is amiss; return None where the host must."""
        if track.device not in deferred.DEVICES:
            return None
        act = self.host.mode == "guard"
        found = deferred.ready(track, act=act, scaler=scaler, awaited=self.host.investigation.awaits(track))
        if found is None or track.last is None:
            return None
        names, grads = found
        number = track.steps if step is None else step
        self.host.recorder.show(track, number, names, grads, 1.0)
        passed = deferred.launch(
            track, names, grads, act=act, step=number, loss=loss, batch=batch, batch_index=batch_index
        )
        if act:
            context = self.host.context_of(track, track.last)
            context.running.accept(passed=passed)
            self.host.update(track, context)
        return StepReport(track.last)

    def catch_up(self, track: OptimizerTrack) -> None:
        """Learn what the device found and did at the last step, if it was left to it."""
        found = None if track.flight is None else deferred.collect(track, self.host.collectives)
        if found is None:
            return
        statistics, alarm = found.statistics, None
        track.steps += 1
        for verdict in track.judge(statistics):
            if not verdict.alarm:
                self.host.recorder.notice(track, statistics.step, verdict)
            elif verdict.form in ("sudden", "non-finite") and not verdict.examine:
                alarm = verdict
            elif verdict.form != "sudden" or found.accused is not None:
                # What asks for more than first aid is asked again, of a step that the host has in hand.
                track.watchful = track.steps + deferred.CLOSE
            else:
                track.check_up = track.odd_loss_interval.due(track.steps)
        if alarm is not None:
            self._first_aid(track, found, alarm)
        elif statistics.finite:
            if overruns(track.baseline, statistics):
                track.watchful = track.steps + deferred.CLOSE  # The host measures the next one before it is made.
            track.policy.rest(statistics.step)
            track.accept(statistics, math.inf)
            self.host.look_for_life(track)
        self.host.recorder.add_step(track, statistics, found.coefficient, alarm=alarm is not None)

    def _first_aid(self, track: OptimizerTrack, found: deferred.Finding, verdict: Verdict) -> None:
        """Record what the device has done about a bad step; from here on the host judges each at once."""
        statistics, limit = found.statistics, track.limit()
        named = suspects(track, self.host.module, self.host.collectives, statistics, (), found.accused)
        # A damaged layer is mended by the host, at the step that it has in hand.
        batch = [s for s in named if s.layer == "batch"]
        decision = track.policy.decide(verdict, statistics, batch, Case(track.baseline, set(track.remedies)))
        outcomes = (found.outcome,) if self.host.mode == "guard" and found.coefficient < 1.0 else ()
        if outcomes:
            decision = dataclasses.replace(decision, remedies=(found.outcome.remedy,))
        if outcomes and found.coefficient == 0.0:
            track.reject(statistics)
        elif statistics.finite:
            track.accept(statistics, limit)
        self.host.record(track, Action(statistics.step, verdict, decision, outcomes), named, found.batch_index)
