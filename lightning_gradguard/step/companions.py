"""The other optimizers of a run, which go back together with the one in trouble.

They are trained on one another: an actor that has followed a diverging critic for a few steps carries it in its
moments, and weights of different steps do not fit together. What was too fast for the one may have been too fast for
the others: whose updates have replaced all of its weights, is lowered as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lightning_gradguard.history.updates import WHOLE
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.snapshots.snapshot import Snapshot, restore
from lightning_gradguard.step.copying import expect_as_then
from lightning_gradguard.step.measuring import context_of
from lightning_gradguard.step.run import Run


def go_back_too(run: Run, track: OptimizerTrack, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Take the other optimizers back to where ``track`` went back to, if it did, and return what is told of it."""
    slower = Act.BACKOFF in track.remedies.done_by([outcome.remedy for outcome in outcomes if outcome.applied])
    return tuple(
        outcome if outcome.back_to is None or not outcome.applied else _with_others(run, track, outcome, slower=slower)
        for outcome in outcomes
    )


def another_on_trial(run: Run, track: OptimizerTrack) -> bool:
    """Return whether a treatment of another optimizer is on trial: of two at a time neither can be judged."""
    return any(other.treatment.trial is not None for other in run.tracks if other is not track)


def _with_others(run: Run, track: OptimizerTrack, outcome: Outcome, *, slower: bool) -> Outcome:
    gone = []
    for other in run.tracks:
        if other is track or (snapshot := _of_then(other, outcome.back_to or 0)) is None:
            continue
        restore(snapshot, other.parameters, other.trained.buffers(), other.optimizer)
        # What was measured of its first step holds there.
        expect_as_then(other, snapshot, look=snapshot.updates == 0)
        gone.append(f"optimizer {other.index} to step {snapshot.number}")
        if slower and other.last is not None and (ratio := other.baseline.updates.ratio) > WHOLE:
            context = context_of(run, other, other.last)
            context.update_ratio = ratio
            done = other.remedies.apply(other.remedies.chosen([Act.BACKOFF]), context)
            other.baseline.updates.slow_down()
            gone += [f"optimizer {other.index} at {one.detail}" for one in done if one.applied]
    return dataclasses.replace(outcome, detail="; ".join([outcome.detail, *gone]))


def _of_then(track: OptimizerTrack, number: int) -> Snapshot | None:
    """Return the newest copy from no later than a step of the record, else the oldest; None where there is none."""
    kept = [s for s in (track.snapshots.latest, track.snapshots.older, track.snapshots.first) if s is not None]
    return next((s for s in kept if s.number <= number), kept[-1] if kept else None)
