"""What is known of a checkpoint that a run has saved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A verdict on a checkpoint; a later one on the same path counts before an earlier one.

    Args:
        path: Where it was saved.
        step: The step at which it was saved.
        healthy: Whether nothing speaks against its weights.
        reason: Why not, or what has changed the verdict; empty where nothing ever spoke against it.
        incident: Number of the incident that spoke against it, or None.
    """

    path: str
    step: int
    healthy: bool
    reason: str = ""
    incident: int | None = None
