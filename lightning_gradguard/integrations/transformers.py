"""GradGuardCallback for Hugging Face's Trainer: ``Trainer(..., callbacks=[GradGuardCallback()])``."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lightning_gradguard.diagnostics import Console, Journal
from lightning_gradguard.guard import Guard
from lightning_gradguard.integrations.accelerate import AheadOfClipping
from lightning_gradguard.records import Incident
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.step import StepReport

log = logging.getLogger("lightning_gradguard")


class GradGuardCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Guard a run of Hugging Face's Trainer; a healthy one ends bit-identical.

    The Trainer clips to ``max_grad_norm`` before its own hook ``on_pre_optimizer_step``; this callback looks before
    that. What the guard has learned is no part of the Trainer's checkpoints.

    Args:
        journal: Whether incidents are also written to ``gradguard.jsonl`` in ``output_dir``; the first one makes the
            file.
        options: Go to :class:`~lightning_gradguard.Guard`.
    """

    def __init__(self, *, journal: bool = True, **options: Any) -> None:
        self.guard = Guard(**options)
        self._journal = journal
        self._ahead: AheadOfClipping | None = None
        self._stop = False

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents of the run, oldest first."""
        return self.guard.incidents

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        """Meet model and optimizer."""
        self.guard.bind(found["model"])
        self.guard.resumed = state.global_step > 0
        self.guard.share(_processes())
        self.guard.until_end(lambda: 1.0 - state.global_step / state.max_steps)
        if state.is_world_process_zero:
            self.guard.sinks.insert(0, Console())
            if self._journal and args.output_dir is not None:
                self.guard.sinks.insert(1, Journal(args.output_dir, lazy=True))
        self._stop = False
        self._ahead = AheadOfClipping(self.guard, found["optimizer"], self._told)

    def _told(self, report: StepReport) -> None:
        self._stop = self._stop or (report.stop and self.guard.on_exhausted == "stop")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look now, where nothing is clipped."""
        if self._ahead is not None:
            self._ahead.look()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run if the budget is spent."""
        self.guard.after_step()
        if self._stop:
            control.should_training_stop = True
            log.error("GradGuard stops the run at step %d.\n%s", state.global_step, self.guard.report())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put everything back."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self.guard.share()
        self.guard.until_end()


def _processes() -> Collectives:
    """Return the collectives of torch.distributed, if that is in use."""
    distributed: Any = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return Collectives()
    size = distributed.get_world_size()

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * size
        distributed.all_gather_object(values, value)
        return values

    def mean(values: list[float]) -> list[float]:
        summed: Tensor = torch.tensor(gather(values), dtype=torch.float64)
        means: list[float] = summed.mean(0).tolist()
        return means

    return Collectives(size, mean=mean, gather=gather)
