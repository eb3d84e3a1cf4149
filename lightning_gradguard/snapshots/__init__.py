"""Copies of a run's state to go back to: how they are kept, when they are taken."""

from lightning_gradguard.snapshots.store import Snapshot, SnapshotStore, restore

__all__ = ["Snapshot", "SnapshotStore", "restore"]
