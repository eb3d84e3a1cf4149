"""The contract of a sink: a place where the record of the run goes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lightning_gradguard.records import AccusedBatch, CheckpointRecord, Incident, Window

Event = Literal["opened", "acted", "closed"]


class Sink(ABC):
    """Receive what the guard has to tell; write it somewhere.

    A sink may raise: the guard catches it, warns once, and goes on without that sink.
    """

    def window(self, window: Window) -> None:
        """Write the statistics of the last steps; called every ``log_every`` steps."""

    def gradients(
        self, step: int, optimizer: int, names: Sequence[str], grads: Sequence[Tensor], grad_scale: float
    ) -> None:
        """Look at the gradients themselves, before any remedy; called once in ``log_every`` steps.

        Args:
            step: The step.
            optimizer: Index of the optimizer.
            names: Parameter names.
            grads: Their gradients, not to be changed.
            grad_scale: What a GradScaler has multiplied them by and not yet divided out.
        """

    def incident(self, incident: Incident, event: Event) -> None:
        """Write an incident: when it opens, at each further alarm, and when it closes."""

    def notice(self, step: int, message: str) -> None:
        """Write one sentence that asks for no remedy."""

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Write a verdict on a checkpoint; it may be the second one on the same."""

    def accused(self, batch: AccusedBatch) -> None:
        """Write that the evidence speaks against a batch, and by what it is known again."""

    def epoch(self) -> None:
        """Write what is worth writing once an epoch."""

    def close(self) -> None:
        """Flush and let go of files; called once, at the end of the run."""
