"""Where the record of a run goes: the sinks that its Trainer calls for, and the directory of its journal."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradguard import checks, twins
from lightning_gradguard.diagnostics import Console, Journal, MetricsSink, Sink
from lightning_gradguard.diagnostics.bar import BarWord
from lightning_gradguard.diagnostics.journal import new_run
from lightning_gradguard.records import Incident

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger("lightning_gradguard")


class RunRecord:
    """Open the sinks of each run, and know its journal.

    Args:
        journal: Whether a journal is written.
        progress_bar: Whether the progress bar says how it goes.
        histograms: Whether TensorBoard gets histograms of the gradients.

    Attributes:
        run: Id by which the journal knows the run.
    """

    def __init__(self, *, journal: bool, progress_bar: bool, histograms: bool) -> None:
        self.run = new_run()
        self._journal = checks.flag("journal", journal)
        self._word = BarWord() if checks.flag("progress_bar", progress_bar) else None
        self._histograms = checks.flag("histograms", histograms)
        self._path: Path | None = None
        # The guard lets go of its sinks at the end of a run; these are there in the next one too.
        self._own: list[Sink] = []

    def html(self, incidents: Iterable[Incident]) -> str:
        """Return the run so far, as a notebook shows it: from its journal, or else what is known of its incidents."""
        if self._path is not None and self._path.is_file():
            from lightning_gradguard.report import show  # only now, as training needs none

            return show(self._path)._repr_html_()
        return "".join(one._repr_html_() for one in incidents) or "<p>GradGuard: no incident so far.</p>"

    def open(self, trainer: Trainer, sinks: list[Sink], *more: Sink) -> None:
        """Put the sinks of this run, and some more, before those that the user has added; every process must call it."""
        self._own += [sink for sink in sinks if not any(sink is own for own in self._own)]
        sinks[:] = self._sinks(trainer) + ([*more, *self._own] if trainer.is_global_zero else [])

    def _sinks(self, trainer: Trainer) -> list[Sink]:
        # Every process must ask for the directory: Lightning broadcasts it.
        given = str(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return []
        sinks: list[Sink] = [Console()]
        if self._word is not None and trainer.progress_bar_callback is not None:
            sinks.append(self._word.beside(trainer.progress_bar_callback))
        board = twins.part(trainer, "loggers.TensorBoardLogger")
        boards = [logger for logger in trainer.loggers if isinstance(logger, board)]
        if boards:
            log.info("GradGuard: tensorboard --logdir %s shows this run in its GradGuard tab", boards[0].log_dir)
        if self._journal and (journal := _journal(trainer, given, self.run)) is not None:
            sinks.append(journal)
            self._path = journal.path
        optimizers = len(trainer.optimizers)
        for logger in trainer.loggers:
            if isinstance(logger, board):
                from lightning_gradguard.diagnostics import TensorBoardSink  # only now, since its import takes long

                sinks.append(TensorBoardSink(logger.experiment, optimizers=optimizers, histograms=self._histograms))
            else:
                sinks += [MetricsSink(logger.log_metrics, optimizers=optimizers), *_alerts(logger)]
        return sinks


def _alerts(logger: object) -> list[Sink]:
    """Return a sink for the alerts of a logger that has some."""
    if not any(word in type(logger).__name__.lower() for word in ("wandb", "trackio")):
        return []
    from lightning_gradguard.diagnostics.alerts import AlertSink, alert_of  # only now, since few have any

    alert = alert_of(logger)
    return [] if alert is None else [AlertSink(alert)]


def _journal(trainer: Trainer, given: str, run: str) -> Journal | None:
    directory = run_directory(trainer, given, run)
    if directory is None:
        log.warning("GradGuard: no journal is written: %s is on no disk of this machine", given)
        return None
    # Without a logger the run has no directory of its own, and a healthy one leaves nothing behind.
    lazy = not trainer.loggers
    told = partial(log.log, logging.WARNING if lazy else logging.INFO, "GradGuard: the journal of this run is %s")
    known = directory == Path(given.removeprefix("file://"))
    return Journal(directory, lazy=lazy, run=run, on_open=None if known else told)


def run_directory(trainer: Trainer, given: str, run: str) -> Path | None:
    """Return the directory of this very run; None for a remote one.

    It is ``trainer.log_dir``, given here, with Lightning's own file loggers only.
    """
    path = given.removeprefix("file://")
    if "://" in path:
        return None
    if not trainer.loggers:
        # Who gave no directory gets no file beside the scripts.
        return Path(path, "gradguard_logs", run) if Path(path).resolve() == Path.cwd() else Path(path)
    first = trainer.loggers[0]
    if isinstance(first, tuple(twins.part(trainer, f"loggers.{name}") for name in ("TensorBoardLogger", "CSVLogger"))):
        return Path(path)
    # As ModelCheckpoint finds its directory: W&B's and MLflow's save_dir is that of all runs.
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return Path(path, str(first.name or ""), version)
