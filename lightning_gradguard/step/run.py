"""What the steps of all optimizers have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from torch import nn

from lightning_gradguard.attribution.investigation import Investigation
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.evidence.accused import AccusedBatches
from lightning_gradguard.evidence.keeper import Keeper
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.snapshots.bystanders import Bystanders
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.statistics.collectives import Collectives


class Run:
    """The run that is guarded.

    Args:
        mode: ``"guard"`` acts; ``"halt"`` ends the run at a bad step; ``"watch"`` changes nothing and only reports.
        recorder: Keeps the record.

    Attributes:
        acts: Whether anything may be changed.
        halts: Whether a bad step ends the run.
        evidence: Keeps what a bad step was computed from, where that is wanted.
        accused: Knows batches that an earlier run has accused, where they are to be left out.
        replicas_every: Steps between two comparisons of the replicas, or None.
        epoch: The epoch, where it is known.
        remaining: Tells the share of the run that is left, from 0 to 1; None where its length is unknown.
        module: The root module.
        tracks: The optimizers that have been met.
        running: Running statistics of its normalisations.
        bystanders: What no optimizer trains.
        collectives: The processes that train together.
        investigation: Measures layers on suspicion.
    """

    module: nn.Module

    def __init__(
        self, mode: Literal["guard", "halt", "watch"], recorder: Recorder, tracks: Collection[OptimizerTrack] = ()
    ) -> None:
        self.acts, self.halts = mode == "guard", mode == "halt"
        self.evidence: Keeper | None = None
        self.accused: AccusedBatches | None = None
        self.replicas_every: int | None = None
        self.epoch: int | None = None
        self.remaining: Callable[[], float] | None = None
        self.recorder, self.tracks = recorder, tracks
        self.collectives = Collectives()
        self.investigation = Investigation()
        self.running: RunningStatistics | None = None
        self.bystanders = Bystanders()

    def leave(self) -> None:
        """Let go of what is known of the module's state."""
        if self.running is not None:
            self.running.leaps.drop()
        self.running, self.bystanders = None, Bystanders()
