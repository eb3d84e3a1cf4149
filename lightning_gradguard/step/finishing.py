"""The end of a run. One idea: one that ends in the midst of an explosion ends with its newest copy.

A bad update is seen at the step after it, when the loss tells. After the last update of a run no step comes that would
go back, and the weights that are saved then would be the bad ones.
"""

from __future__ import annotations

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Action, Decision, GradientStatistics, Verdict
from lightning_gradguard.step.companions import go_back_too
from lightning_gradguard.step.copying import moved_too_far
from lightning_gradguard.step.measuring import context_of
from lightning_gradguard.step.passing import tell_of_leaps
from lightning_gradguard.step.recording import record
from lightning_gradguard.step.run import Run


def finish(run: Run, track: OptimizerTrack) -> None:
    """Go back to the newest copy where all that was learned is gone in the very last step.

    A loss above that of untrained weights, in an alarm of which the batch is not accused, speaks against the weights
    beyond doubt where an update can have brought it; nothing less does, since no further batch can be asked. Where a
    treatment is on trial, weights have been gone back to already.
    """
    _end_of_leaps(run, track)
    last, losses = track.last, track.baseline.losses
    if not run.acts or last is None or track.snapshots.latest is None or track.treatment.trial is not None:
        return
    if not (track.policy.accuses and losses.learned and losses.worse_than_untrained(last.loss)):
        return
    if track.baseline.updates.ratio > LARGE or track.climbs or moved_too_far(track):
        _go_back(run, track, last)


def _end_of_leaps(run: Run, track: OptimizerTrack) -> None:
    """Put back running statistics that somebody has written to in the very last step, since no batch will tell."""
    if run.acts and run.running is not None and run.running.leaps.waiting:
        run.running.end()
        if run.running.leaps.told:
            tell_of_leaps(run, track.number)


def _go_back(run: Run, track: OptimizerTrack, last: GradientStatistics) -> None:
    loss, untrained = last.loss or 0.0, track.baseline.losses.untrained
    told = f"the run ends at a loss of {loss:.3g}, above the {untrained:.3g} of before training"
    decision = Decision(track.remedies.chosen((Act.ROLLBACK,)), told, Cause.UNKNOWN.value)
    context = context_of(run, track, last)
    context.decision, context.buffers = decision, track.trained.buffers()
    outcomes = go_back_too(run, track, track.remedies.apply(decision.remedies, context))
    track.remedies.after_update()
    context.running.accept()
    record(
        run, track, Action(last.step, Verdict("divergence", "end", loss, untrained, told), decision, outcomes), (), None
    )
