"""How much of a run's state is kept: decided by all processes alike, before the first copy is made."""

from __future__ import annotations

from lightning_gradguard.snapshots import node
from lightning_gradguard.snapshots.budget import Budget, Keeping, Need, fitting
from lightning_gradguard.snapshots.snapshot import LiveState
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.sharding import sharded


def agreed(
    wanted: Need,
    keep: int,
    budget: Budget,
    live: LiveState,
    collectives: Collectives,
    *,
    on_disk: bool,
) -> tuple[Keeping, str]:
    """Return the most that all processes can keep alike, and a warning; all must call this at the same point.

    Args:
        wanted: What one snapshot of this process takes.
        keep: Snapshots that are wanted.
        budget: What they may take.
        live: The state of which snapshots are to be kept.
        collectives: The processes.
        on_disk: Whether there are checkpoints that a run can go back to.
    """
    whole = not any(sharded(p) for p in live.parameters.values())
    # An optimizer that leaves each process a part of its state (ZeRO) is not the same on all.
    shares = whole and collectives.neighbours > 1 and node.can_share()
    same = repr(node.layout(live)) if shares else ""
    mine = budget.allows(wanted, keep), same, on_disk and whole
    told = collectives.gather(mine)
    possible = set(Keeping)
    if not same or any(other != same for _, other, _ in told):
        possible.discard(Keeping.NODE)
    if not all(disk for *_, disk in told):
        possible.discard(Keeping.DISK)
    level = fitting([allowed for allowed, *_ in told], possible)
    if fitting([mine[0]], possible) is level:
        return level, budget.told(wanted, keep, level)
    return level, f"another process has too little memory for snapshots: {level.told}"
