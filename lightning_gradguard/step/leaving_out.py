"""Batches that the evidence speaks against: they are put on record, and left out where an earlier run has done so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.evidence.accused import AccusedBatches
from lightning_gradguard.evidence.digest import digest_of
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import AccusedBatch, StepReport, Suspect
from lightning_gradguard.remedies import Remedy, RemedyContext
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.learning import reject
from lightning_gradguard.step.recording import note
from lightning_gradguard.step.run import Run


def to_leave_out(
    path: str | os.PathLike[str] | None, mode: str, remedies: Sequence[Remedy], recorder: Recorder
) -> AccusedBatches | None:
    """Return what knows the batches that are accused at a path, or None where there is no path.

    Raises:
        ValueError: They cannot be read, or no step can be skipped.
    """
    if path is None:
        return None
    if mode == "watch":
        raise ValueError("skip_batches needs mode 'guard' or 'halt', since 'watch' changes nothing")
    if not any(Act.SKIP in remedy.acts for remedy in remedies):
        raise ValueError("skip_batches needs a remedy that skips steps, and there is none")
    return AccusedBatches(path, partial(recorder.warn, "skip_batches"))


def leave_out(run: Run, track: OptimizerTrack, context: RemedyContext, reason: str) -> StepReport:
    """Skip the step of a batch that an earlier run has accused; nothing is learned from it."""
    step = context.statistics.step
    context.limit, context.target = track.limit(), track.target(track.limit())
    outcomes = track.remedies.apply(track.remedies.chosen((Act.SKIP,)), context)
    reject(track, context.statistics)
    note(run, track, context.statistics, 0.0, alarm=False)
    run.recorder.tell("notice", step, f"left out: {reason}")
    return StepReport(context.statistics, outcomes=outcomes, skipped=any(outcome.skips for outcome in outcomes))


def accuse(run: Run, track: OptimizerTrack, step: int, suspects: Sequence[Suspect], inputs: StepInputs) -> None:
    """Put a batch on record, if the evidence speaks against it before all others and its place is known."""
    if not suspects or not suspects[0].is_batch or run.epoch is None or inputs.batch_index is None:
        return
    own = (one for one in inputs.batches if one[0] is not None and track.batches.accuse(one[0]) is not None)
    batch, index = next(own, (inputs.batch, inputs.batch_index))
    if index is None:
        return
    rank, reason = run.collectives.rank, suspects[0].reason
    run.recorder.tell("accused", AccusedBatch(step, run.epoch, index, digest_of(batch), rank, reason))
