"""Replicas of one model that are no longer the same. One idea: a flipped bit on one machine parts them for good."""

from __future__ import annotations

import hashlib

from lightning_gradguard.errors import TrainingDiverged
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.statistics.checksum import checksums, parted
from lightning_gradguard.step.run import Run

FEW_NAMES = 3
"""Parameters that are named; a fault in the optimizer's step changes many."""


def compare(run: Run, track: OptimizerTrack) -> None:
    """Compare parameters on all processes before a step, where that is due; name the ranks that have parted, once.

    Equal replicas cost one collective of a few bytes.

    Raises:
        TrainingDiverged: They have parted, and a bad step ends the run.
    """
    if run.replicas_every is None or run.collectives.size == 1 or track.steps % run.replicas_every:
        return
    if track.sharded:
        run.recorder.warn("replicas", "compare_replicas has nothing to compare: the parameters are sharded")
        return
    own = checksums(track.parameters.values())
    if len(set(run.collectives.gather(hashlib.blake2b(repr(own).encode(), digest_size=8).hexdigest()))) == 1:
        return
    ranks, places = parted(run.collectives.gather(own))
    names = [name for at, name in enumerate(track.parameters) if at in set(places)]
    told = _told(ranks, names, of=run.collectives.size)
    run.recorder.tell("notice", track.number, f"replicas: {told}")
    run.recorder.warn(f"replicas {ranks}", f"{told}: suspect their machines, or code that runs on one rank only")
    if run.halts:
        raise TrainingDiverged(f"at step {track.number}: {told}")


def _told(ranks: list[int], names: list[str], *, of: int) -> str:
    shown = ", ".join(names[:FEW_NAMES]) + (f" and {len(names) - FEW_NAMES} more" if len(names) > FEW_NAMES else "")
    who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    if len(ranks) == of:
        return f"{who} no longer hold the same weights, and which are right cannot be told: {shown}"
    return f"{who} of {of} no longer hold the weights of the others: {shown}"
