"""Which states are worth going back to, and copying them to host memory."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.history.baseline import LARGE, RECENT, YOUNG
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.measure import FEW

LOUD = 3.0
"""Times the typical norm from which a step's state is not copied."""


def worth_keeping(track: OptimizerTrack, step: int, statistics: GradientStatistics) -> bool:
    """Return whether the state before ``step`` should be copied: it is time, and nothing is suspicious."""
    trial = track.trial is not None
    # The one question of nearly every step; the others can wait until the answer is yes.
    if not track.snapshots.due(step, soon=trial) or not any(r.uses_snapshots for r in track.remedies.values()):
        return False
    known, loss = track.baseline, statistics.loss
    if track.snapshots.empty:
        return True
    if track.incident is not None and not (trial and known.at_best and len(track.losses_on_trial) > RECENT):
        return False
    overdue = track.snapshots.overdue(step)
    # Where the first copy stays in any case, a newer one takes nothing away.
    large = known.update_ratio > LARGE and not (overdue or track.snapshots.pinned)
    if known.first_losses and not known.learned and (known.count < YOUNG or large):
        return False  # What is there has lost nothing to this, and cannot have been damaged on the way.
    if known.count > FEW and statistics.norm > LOUD * known.typical:
        return False
    # A run that has died must not overwrite what it could go back to; a new task is waited for only so long.
    worse = (known.worse or known.above_untrained) and not overdue
    return not worse and not known.loss_elevated(loss)


def keep(
    track: OptimizerTrack, step: int, statistics: GradientStatistics, batch: Any, collectives: Collectives
) -> str | None:
    """Take a snapshot if it is worth it, and note how large a healthy batch is; return what to warn of, if anything."""
    if batch is not None and step < FEW:
        track.batches.remember(batch)
    if not worth_keeping(track, step, statistics):
        return None
    if batch is not None:
        track.batches.remember(batch)
    failure: str | None = None
    try:
        track.snapshots.take(step, track.parameters, track.buffers, track.optimizer, track.memory())
    except (MemoryError, RuntimeError) as error:
        failure = str(error)
    # Where one process has no snapshot to go back to, the others must not go back either.
    if not collectives.mean([float(failure is not None)]) > [0.0]:
        return None
    track.snapshots.switch_off()
    return f"no memory for a snapshot ({failure or 'on another process'}); rollback is switched off, training goes on"
