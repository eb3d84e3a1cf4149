"""A batch that the evidence speaks against, so that a run that is started again can leave it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccusedBatch:
    """Where a batch comes in a run, and by what it is known again.

    Args:
        step: The step that it was accused at.
        epoch: The epoch, counted from 0.
        batch_index: Its number in the epoch.
        digest: :func:`lightning_gradguard.evidence.digest.digest_of` of it, as the process ``seen_by`` had it.
        seen_by: Rank of that process.
        reason: What speaks against it.
    """

    step: int
    epoch: int
    batch_index: int
    digest: str
    seen_by: int = 0
    reason: str = ""
