"""Copies of the state: which are made, and going back to them, in weights and in what was learned."""

from __future__ import annotations

from functools import partial

from lightning_gradguard.history.updates import LARGE, WHOLE
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.snapshots.snapshot import Snapshot, restore
from lightning_gradguard.snapshots.when import attempt, worth_keeping
from lightning_gradguard.statistics.update_ratio import moved
from lightning_gradguard.step.bystanding import renew
from lightning_gradguard.step.run import Run

NOT_IN_CHECKPOINT = (
    "the checkpoint holds no copy of the state from before the treatment on trial: if that fails it can be ended, and "
    "its weights cannot be taken back"
)
STANDS_IN = "; nor has it a copy of good weights, so its own stand in for one"


def worth_copying(track: OptimizerTrack, step: int, statistics: GradientStatistics) -> bool:
    """Return whether the state before ``step`` should be copied."""
    trial = None if track.treatment.trial is None else len(track.treatment.trial.losses)
    # A rate that climbs may lose the run again, and what was won since must not be lost with it.
    soon = trial is not None or (track.baseline.updates.convicted and _at_best(track, statistics))
    # The one question of nearly every step; the others can wait until the answer is yes.
    if not track.snapshots.due(step, soon=soon):
        return False
    if not any(remedy.uses_snapshots for remedy in track.remedies):
        return False
    return worth_keeping(
        track.snapshots, step, statistics, track.baseline, incident=track.incident is not None, trial=trial, soon=soon
    )


def _at_best(track: OptimizerTrack, statistics: GradientStatistics) -> bool:
    """Return whether the loss is the best so far, of these very weights too, at a rate that climbs."""
    losses, loss = track.baseline.losses, statistics.loss
    return track.climbs and losses.at_best and loss is not None and loss <= losses.best_level


def copy(run: Run, track: OptimizerTrack, step: int) -> None:
    """Keep a copy of the state before ``step``, as far as memory allows; every process does so at the same step."""
    state = track.parameters, track.trained.buffers(), track.optimizer
    if told := track.snapshots.plan(*state, run.collectives):
        run.recorder.warn(told, told)
    renew(run, track)
    if track.snapshots.keep == 0:
        return
    take = partial(track.snapshots.take, step, *state, track.memory(), run.collectives)
    if failure := attempt(take, run.collectives, "a snapshot"):
        # Where one process has none to go back to, the others must not go back either.
        track.snapshots.switch_off()
        run.recorder.warn("snapshots", f"{failure}; rollback is switched off, training goes on")


def make_up(run: Run, track: OptimizerTrack) -> None:
    """Copy the state before a step at once where a checkpoint did not hold what there was to go back to.

    Where it was written in a trial, say what cannot be taken back.
    """
    missing, bare = track.snapshots.missing, track.treatment.bare
    if not (missing or bare) or not run.acts or not any(remedy.uses_snapshots for remedy in track.remedies):
        return
    if bare and track.snapshots.keep > 0:
        run.recorder.tell("notice", track.number, NOT_IN_CHECKPOINT + (STANDS_IN if missing else ""))
    track.treatment.bare = False
    if missing:
        copy(run, track, track.steps)


def copy_ahead(run: Run, track: OptimizerTrack) -> None:
    """Begin to copy the state beside the batch's own work, where a snapshot is likely to be taken before its update."""
    step = track.steps + track.gate.waiting
    calm = run.acts and track.incident is None and track.last is not None
    if calm and track.device == "cuda" and worth_copying(track, step, track.last):  # type: ignore[arg-type]
        track.snapshots.begin(step, track.parameters, track.optimizer)


def captured(run: Run, track: OptimizerTrack) -> Snapshot | None:
    """Return a copy of the state from before a treatment; None, with a warning, where memory is short."""
    state = track.parameters, track.trained.buffers(), track.optimizer, track.memory(), run.collectives
    made: list[Snapshot] = []
    if failure := attempt(
        lambda: made.append(track.snapshots.capture(track.steps, *state)), run.collectives, "a copy before a treatment"
    ):
        run.recorder.warn("untreated", f"{failure}; if the treatment does not help, its weights stay")
        return None
    return made[0]


def put_back(track: OptimizerTrack, snapshot: Snapshot) -> None:
    """Go back to a copy of the state, and to what was known then."""
    restore(snapshot, track.parameters, track.trained.buffers(), track.optimizer)
    track.load_memory(snapshot.extra)


def expect_as_then(track: OptimizerTrack, snapshot: Snapshot | None, *, look: bool) -> None:
    """Take back what was learned since the copy that weights went back to; ``look`` where layers are measured."""
    # Updates and rates stay known: they do not go back with the weights.
    kept = track.baseline.outlasting()
    if snapshot is not None:
        track.load_memory(snapshot.extra)
    track.baseline.outlast(kept)
    track.treatment.signal.go_back(look=look)


def moved_too_far(track: OptimizerTrack) -> bool:
    """Return whether the weights have moved farther from the newest copy than their updates can have carried them."""
    copied = track.snapshots.latest
    if copied is None or track.sharded:
        return False
    return moved(track.module, track.parameters, copied.parameters) > LARGE * max(track.steps - copied.step, 1)


def ran_away(track: OptimizerTrack) -> bool:
    """Return whether the weights have all been replaced since the older copy: it is they that have gone beyond."""
    copied = track.snapshots.older or track.snapshots.latest
    return copied is not None and not track.sharded and moved(track.module, track.parameters, copied.parameters) > WHOLE
