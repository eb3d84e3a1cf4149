"""Which states are worth going back to, and copying them to host memory."""

from __future__ import annotations

from typing import Any

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
    if not first and not lane.baseline.learned:
        return False  # What is there has lost nothing to this, and cannot have been damaged on the way.
    baseline = lane.baseline
    loud = baseline.count > FEW and statistics.norm > 3.0 * baseline.typical
    untrained, loss = baseline.untrained_loss, statistics.loss
    worse = loss is not None and loss > 1.5 * untrained > 0
    # A run that went back and has not come back to itself must not overwrite what it could go back to again.
    lost = baseline.setback is not None and loss is not None and loss > 3.0 * baseline.best_loss
    return not (loud or worse or lost or baseline.loss_elevated(loss))


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
