"""One step as its device judges it, and what the host learns of it when the next one is about to be made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from lightning_gradguard import late
from lightning_gradguard.flow import Flow, StepReport
from lightning_gradguard.investigation import suspects
from lightning_gradguard.lane import Lane
from lightning_gradguard.measuring import overruns
from lightning_gradguard.policy import Case
from lightning_gradguard.records import Action, Verdict


class LateFlow:
    """The way that a step of a calm run takes on an accelerator; all else is left to ``flow``.

    Args:
        flow: The way that every other step takes.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def leave(
        self,
        lane: Lane,
        loss: Tensor | float | None,
        batch: Any,
        batch_index: int | None,
        step: int | None,
        scaler: Any,
    ) -> StepReport | None:
        """Let the device judge a step in whose run nothing is amiss; return None where the host must."""
        if lane.device not in late.DEVICES:
            return None
        act = self.flow.mode == "guard"
        found = late.ready(lane, act=act, scaler=scaler, awaited=self.flow.investigation.awaits(lane))
        if found is None or lane.last is None:
            return None
        names, grads = found
        number = lane.number = lane.steps if step is None else step
        self.flow.recorder.show(lane, number, names, grads, 1.0)
        passed = late.launch(lane, names, grads, act=act, step=number, loss=loss, batch=batch, batch_index=batch_index)
        if act:
            scene = self.flow.scene_of(lane, lane.last)
            scene.running.accept(passed=passed)
            self.flow.update(lane, scene)
        return StepReport(lane.last)

    def catch_up(self, lane: Lane) -> None:
        """Learn what the device found and did at the last step, if it was left to it."""
        found = None if lane.flight is None else late.collect(lane, self.flow.team)
        if found is None:
            return
        statistics, alarm = found.statistics, None
        lane.steps += 1
        for verdict in lane.judge(statistics):
            if not verdict.alarm:
                self.flow.recorder.notice(lane, statistics.step, verdict)
            elif verdict.form in ("sudden", "non-finite") and not verdict.examine:
                alarm = verdict
            elif verdict.form != "sudden" or found.accused is not None:
                # What asks for more than first aid is asked again, of a step that the host has in hand.
                lane.watchful = lane.steps + late.CLOSE
            else:
                lane.check_up = lane.glances.due(lane.steps)
        if alarm is not None:
            self._first_aid(lane, found, alarm)
        elif statistics.finite:
            if overruns(lane.baseline, statistics):
                lane.watchful = lane.steps + late.CLOSE  # The host measures the next one before it is made.
            lane.policy.rest(statistics.step)
            lane.accept(statistics, math.inf)
            self.flow.look_for_life(lane)
        self.flow.recorder.meter(lane, statistics, found.coefficient, alarm=alarm is not None)

    def _first_aid(self, lane: Lane, found: late.Late, verdict: Verdict) -> None:
        """Record what the device has done about a bad step; from here on the host judges each at once."""
        statistics, limit = found.statistics, lane.limit()
        named = suspects(lane, self.flow.module, self.flow.team, statistics, (), found.accused)
        # A damaged layer is mended by the host, at the step that it has in hand.
        batch = [s for s in named if s.layer == "batch"]
        decision = lane.policy.decide(verdict, statistics, batch, Case(lane.baseline, set(lane.remedies)))
        outcomes = (found.outcome,) if self.flow.mode == "guard" and found.coefficient < 1.0 else ()
        if outcomes:
            decision = dataclasses.replace(decision, remedies=(found.outcome.remedy,))
        if outcomes and found.coefficient == 0.0:
            lane.reject(statistics)
        elif statistics.finite:
            lane.accept(statistics, limit)
        self.flow.record(lane, Action(statistics.step, verdict, decision, outcomes), named, found.batch_index)
