"""Which states are worth going back to, and copying them to host memory."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.baseline import BEFORE, INSANE, RECENT, YOUNG, Baseline
from lightning_gradguard.lane import Lane
from lightning_gradguard.measuring import FEW, Team
from lightning_gradguard.records import GradientStatistics


def worth_keeping(lane: Lane, step: int, statistics: GradientStatistics) -> bool:
    """Tell whether the state before ``step`` should be copied: it is time, and nothing is suspicious."""
    # The one question of nearly every step; the others can wait until the answer is yes.
    if not lane.snapshots.due(step) or not any(remedy.uses_snapshots for remedy in lane.remedies.values()):
        return False
    first = lane.snapshots.empty
    if lane.incident is not None and not first:
        return False
    baseline = lane.baseline
    if not first and not baseline.learned and not _honest(baseline):
        return False  # What is there has lost nothing to this, and cannot have been damaged on the way.
    loud = baseline.count > FEW and statistics.norm > 3.0 * baseline.typical
    untrained, loss = baseline.untrained_loss, statistics.loss
    # An honest loss may climb (a value that follows its rewards); then it is compared with where it was of late.
    of_late = untrained if baseline.learned else max(untrained, baseline.loss_level(BEFORE, skip=RECENT)[0])
    worse = loss is not None and loss > 1.5 * of_late > 0
    # A run that has not come back to itself must not overwrite what it could go back to. Where it never went back this may
    # as well be a new task, which is waited for only so long.
    if baseline.setback is not None:
        lost = loss is not None and loss > 3.0 * baseline.best_loss
    else:
        lost = baseline.lost and not lane.snapshots.overdue(step)
    return not (loud or worse or lost or baseline.collapsed or baseline.loss_elevated(loss))


def _honest(baseline: Baseline) -> bool:
    """Tell whether a loss that has not fallen may be of that kind (an adversary's, an actor's), and not a failure to learn.

    Only a run whose first updates were insane, or that went back, is ever sent back for not having learned.
    """
    return baseline.count >= YOUNG and baseline.update_ratio <= INSANE and baseline.setback is None


def keep(lane: Lane, step: int, statistics: GradientStatistics, batch: Any, team: Team) -> str | None:
    """Take a snapshot if it is worth it, and note how large a healthy batch is; return what to warn of, if anything."""
    if batch is not None and step < FEW:
        lane.batches.remember(batch)
    if not worth_keeping(lane, step, statistics):
        return None
    if batch is not None:
        lane.batches.remember(batch)
    failure: str | None = None
    try:
        lane.snapshots.take(step, lane.parameters, lane.buffers, lane.optimizer, lane.memory())
    except (MemoryError, RuntimeError) as error:
        failure = str(error)
    # Where one process has no snapshot to go back to, the others must not go back either.
    if not team.mean([float(failure is not None)]) > [0.0]:
        return None
    lane.snapshots.switch_off()
    return f"no memory for a snapshot ({failure or 'on another process'}); rollback is switched off, training goes on"
