"""Copies of a run's state to go back to: how they are kept, when they are taken."""

from lightning_gradguard.snapshots.on_disk import Checkpoints, Saved
from lightning_gradguard.snapshots.snapshot import Snapshot, restore
from lightning_gradguard.snapshots.store import SnapshotStore

__all__ = ["Checkpoints", "Saved", "Snapshot", "SnapshotStore", "restore"]
