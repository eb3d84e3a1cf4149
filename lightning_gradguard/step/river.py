"""The way of one step, from its gradients to its record."""

from __future__ import annotations

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import StepReport
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.step.bystanding import look_aside, tell
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.judging import judge
from lightning_gradguard.step.leaving_out import accuse, leave_out
from lightning_gradguard.step.measuring import measured
from lightning_gradguard.step.passing import let_pass
from lightning_gradguard.step.recording import note
from lightning_gradguard.step.run import Run
from lightning_gradguard.step.treating import treat


class Step:
    """Take one step at a time through all stages.

    Args:
        run: What the steps of all optimizers have in common.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def take(self, track: OptimizerTrack, inputs: StepInputs) -> StepReport:
        """Measure the gradients that an optimizer is about to step with, judge them, act on them, learn and record."""
        return self.go_on(track, measured(self._run, track, inputs), inputs)

    def go_on(self, track: OptimizerTrack, context: RemedyContext, inputs: StepInputs) -> StepReport:
        """Judge a step that has been measured, act on it, learn from it and record it."""
        run = self._run
        if run.accused is not None and (why := run.accused.take()):
            track.steps += 1
            return leave_out(run, track, context, why)
        verdict, suspects = judge(run, track, context, inputs)
        track.steps += 1
        if verdict is None:
            let_pass(run, track, context, inputs.batch)
            note(run, track, context.statistics, 1.0, alarm=False)
            return StepReport(context.statistics)
        if not context.statistics.finite:
            suspects = look_aside(run, track, context, suspects)
        report = treat(run, track, context, verdict, suspects, inputs.batch_index)
        if report.skipped and run.acts:
            tell(run, track, context.fallen)
        accuse(run, track, context.statistics.step, suspects, inputs)
        coefficient = min((outcome.coefficient for outcome in report.outcomes), default=1.0)
        note(run, track, context.statistics, coefficient, alarm=True)
        return report
