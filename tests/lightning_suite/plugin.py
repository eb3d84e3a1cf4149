"""A pytest plugin that puts into every Trainer the guard, a callback that does nothing or only writes, or none."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors import callback_connector

from lightning_gradguard.callback import from_environment
from lightning_gradguard.diagnostics.journal import new_run
from lightning_gradguard.records import GradientStatistics, Incident, StepReport
from lightning_gradguard.trainer.marking import CheckpointMarks
from lightning_gradguard.trainer.record import run_directory

VARIABLE = "GRADGUARD_SUITE"


class Nothing(Callback):
    """Do nothing, but be there, and have a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return a state, as the guard has one."""
        return {"nothing": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""


class Writes(Nothing):
    """Do nothing to the run, but write what the guard writes: journal, metrics, and marks and copies of checkpoints."""

    def __init__(self) -> None:
        self._marks = CheckpointMarks()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint."""
        self._marks.mark(checkpoint, trainer.global_step, ())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Copy what was saved."""
        self._copy(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Copy what was saved last."""
        if stage == "fit":
            self._copy(trainer)

    def _copy(self, trainer: Any) -> None:
        self._marks.look(trainer)
        # As where a step was fine, and an incident opens later: the copy of what was saved before it is shown.
        self._marks.judged(StepReport(GradientStatistics(trainer.global_step, (), np.zeros(0), 0.0)))
        self._marks.incident(Incident(1, 0, trainer.global_step, "sudden"), "opened")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Write the file."""
        given = str(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            directory = run_directory(trainer, given, new_run())
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
                (directory / "gradguard.jsonl").touch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write a metric."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({"gradguard/nothing": 0.0}, step=trainer.global_step)


CALLBACKS = {"guard": from_environment, "nothing": lambda: [Nothing()], "writes": lambda: [Writes()], "none": list}


def pytest_configure(config: pytest.Config) -> None:
    """Let Lightning load it as it loads callbacks of entry points."""
    # Of pytest-rerunfailures, which need not be installed.
    config.addinivalue_line("markers", "flaky: may fail now and then")
    load, own = callback_connector._load_external_callbacks, CALLBACKS[os.environ[VARIABLE]]

    def with_ours(group: str) -> list[Any]:
        # What is installed besides must not come in twice.
        return [c for c in load(group) if type(c).__name__ != "GradGuard"] + list(own())

    callback_connector._load_external_callbacks = with_ours
