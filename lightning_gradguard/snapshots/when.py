"""Which states are worth going back to, and copying them to host memory."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import FEW, RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.collectives import Collectives

TOO_LARGE_TO_COPY = 3.0
"""Times the typical norm from which a step's state is not copied."""


def worth_keeping(
    store: SnapshotStore,
    step: int,
    statistics: GradientStatistics,
    known: Baseline,
    *,
    incident: bool = False,
    trial: int | None = None,
    soon: bool = False,
) -> bool:
    """Return whether the state before ``step`` should be copied: it is time, and nothing is suspicious.

    Args:
        store: The copies that there are.
        step: Number of the step.
        statistics: Its gradients.
        known: What a healthy step looks like.
        incident: Whether an incident is open.
        trial: How many losses there are since the treatment on trial; None where there is none.
        soon: Whether ten steps after the last one are enough.
    """
    if not store.due(step, soon=soon):
        return False
    if store.empty:
        return True
    if incident and not (trial is not None and known.losses.at_best and trial > RECENT):
        return False
    overdue = store.schedule.overdue(step)
    # Where the first copy stays in any case, a newer one takes nothing away.
    large = known.updates.ratio > LARGE and not (overdue or store.pinned)
    if known.losses.first and not known.losses.learned and (known.count < THIN_HISTORY or large):
        return False  # What is there has lost nothing to this, and cannot have been damaged on the way.
    if known.count > FEW and statistics.norm > TOO_LARGE_TO_COPY * known.norms.typical:
        return False
    # A run that has died must not overwrite what it could go back to; a new task is waited for only so long.
    worse = (known.losses.worse or known.losses.above_untrained or known.losses.mostly_lost) and not overdue
    return not worse and not known.losses.elevated(statistics.loss)


def attempt(make: Callable[[], None], collectives: Collectives, what: str) -> str | None:
    """Make a copy by ``make``; return what to warn of where memory does not allow it, on all processes if on one."""
    failure: str | None = None
    try:
        make()
    except (MemoryError, RuntimeError) as error:
        failure = f"no memory for {what}: {error}" if out_of_memory(error) else f"{what} failed: {error!r}"
    if not collectives.mean([float(failure is not None)]) > [0.0]:
        return None
    return failure or f"no memory for {what} on another process"
