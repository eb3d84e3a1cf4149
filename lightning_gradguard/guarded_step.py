"""One step with all its ways out: judged at once, left to its device, out of budget, or past a guard that fails."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradguard.deferred_step import DeferredStep
from lightning_gradguard.errors import GuardError, TrainingDiverged
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.step import Run, Step, StepInputs, StepReport
from lightning_gradguard.step.keeping import written
from lightning_gradguard.step.preparing import prepare
from lightning_gradguard.step.recording import stop

CLIPPED_BEFORE = (
    "every gradient of the last steps has the norm {:g}: call before_step before clipping, or no explosion is seen"
)


class GuardedStep:
    """Take a step, and never make it worse than it would be without a guard.

    Args:
        run: What the steps of all optimizers have in common.
        deferred: Takes the steps that are left to their devices.
        on_exhausted: What to do when the budget is spent: ``"stop"``, ``"raise"`` or ``"continue"``.
        on_error: What to do when the guard itself fails: ``"raise"``, or ``"warn"`` and let the step pass.
    """

    def __init__(self, run: Run, deferred: DeferredStep, *, on_exhausted: str, on_error: str) -> None:
        self._run, self._step, self._deferred = run, Step(run), deferred
        self._on_exhausted, self._on_error = on_exhausted, on_error

    def take(self, track: OptimizerTrack, inputs: StepInputs, *, clips_follow: bool) -> StepReport:
        """Judge the gradients that an optimizer is about to step with, and act on them."""
        track.begin()
        track.gate.clips_follow = clips_follow
        try:
            if track.gate.waiting:
                self._deferred.before(track)
            prepare(self._run, track, inputs)
            report = self._deferred.leave(track, inputs)
            if report is None:
                report = self._step.take(track, inputs)
            if (bound := track.clipping_seen.add(report.statistics.norm)) is not None:
                self._run.recorder.warn(f"clipped {track.index}", CLIPPED_BEFORE.format(bound))
            if report.stop:
                self._exhausted(track, report)
            return report
        except Exception as error:
            self._never_worse(track, error)
        number = track.steps if inputs.step is None else inputs.step
        return StepReport(GradientStatistics(number, (), np.zeros(0), math.nan))

    def _exhausted(self, track: OptimizerTrack, report: StepReport) -> None:
        if self._on_exhausted == "continue":
            return
        raises = self._on_exhausted == "raise"
        bundles = written(self._run, track) if raises else []
        stop(self._run, track, report.statistics.step)
        if raises:
            raise TrainingDiverged("\n".join([self._run.recorder.report(), *bundles]))

    def _never_worse(self, track: OptimizerTrack, error: Exception) -> None:
        """Put everything back after an error; raise it again unless the step may pass as if there were no guard."""
        track.after_update()
        track.gate.drop()
        if isinstance(error, TrainingDiverged):
            raise error
        self._run.investigation.disarm()
        if self._on_error == "raise":
            raise error
        self._run.recorder.warn("error", f"the guard itself failed and let the step pass: {error!r}")

    def isolate(self, error: GuardError) -> None:
        """Tell of a part that failed and is left out from now on."""
        self._run.recorder.warn(str(error), f"{error}; the run goes on without it")
