"""GradGuard, the Lightning callback. It translates hooks and decides nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard import checks, twins
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics import Console, Event, Journal, MetricsSink, Sink
from lightning_gradguard.diagnostics.bar import BarWord
from lightning_gradguard.diagnostics.journal import new_run
from lightning_gradguard.evidence import Evidence
from lightning_gradguard.evidence.collecting import Place
from lightning_gradguard.evidence.keeper import DIRECTORY as EVIDENCE
from lightning_gradguard.evidence.keeper import Keeper
from lightning_gradguard.guard import Guard
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Incident
from lightning_gradguard.remedies import Remedy, SwapActivation, restore_activations
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.loss_owners import LossOwners
from lightning_gradguard.statistics.norms import can_sum_over_shards
from lightning_gradguard.step import StepReport

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import Strategy
else:
    # Of whichever twin is there; the other one's is added when a guard is made.
    Callback, *_ = twins.callbacks()

log = logging.getLogger("lightning_gradguard")

REFUSED = {
    "DeepSpeedStrategy": "DeepSpeed's engine owns clipping and the update, and hands out gradients per micro-batch",
    "FSDPStrategy": "FSDP1 flattens parameters into shards, which hides the layers; use ModelParallelStrategy (FSDP2)",
}

CLIPPING = "configure_gradient_clipping"


class GradGuard(Callback):
    """Detect gradient explosions, remedy them, and log what happened.

    No argument is needed. A healthy run ends bit-identical to the same run without the callback. The Trainer may be
    ``lightning.pytorch``'s or that of its twin ``pytorch_lightning``.

    Args:
        mode: ``"guard"`` acts; ``"halt"`` ends the run at its first bad step: it is not applied, the evidence is written, and
            TrainingDiverged is raised on all processes before the weights are touched; ``"watch"`` changes nothing and only reports.
        detectors: What to look for; by default one detector for each form of trouble.
        remedies: What may be done; leave one out to switch it off. Without Skip (or without a detector of non-finite
            gradients) a NaN reaches the weights, of which a warning tells.
        exclude: Shell-style patterns of detectors and remedies, by name, that are left out: ``["drift", "backoff"]``.
        policy: The ladder of remedies, its cool-downs and budget.
        snapshots: How often the state is copied to host memory, and how many copies are kept.
        log_every: Optimizer steps between two points on TensorBoard.
        journal: Whether incidents are also written to ``gradguard.jsonl`` in the run's directory; without a logger
            the file is made by the first incident, and below ``gradguard_logs`` where the Trainer was given no directory.
        progress_bar: Whether the progress bar says how it goes, in a word beside its other numbers (``gg: ok``, ``gg: 2 skipped``).
        sinks: Where the record goes besides, on the first process; a sink that is added to ``guard.guard.sinks`` before ``fit`` stays too.
        on_incident: Called as ``on_incident(incident, event)`` there when an incident opens, goes on and closes.
        histograms: Whether TensorBoard also gets a histogram of log10 of the absolute gradients of each layer, once in ``log_every`` steps.
        evidence: Whether what a bad step was computed from is kept in a bundle, and how much of it; by default under
            ``mode="halt"`` only.
        on_exhausted: When the budget is spent: ``"stop"`` the run with a report, ``"raise"`` TrainingDiverged, or
            ``"continue"`` with clipping and holding steps only.
        on_error: When a detector or remedy itself fails: ``"raise"`` GuardError, or ``"warn"`` once and go on without it.

    Raises:
        ValueError: An argument is out of range; the message names it, the constraint and the value.
        MisconfigurationException: At setup, under a strategy whose gradients cannot be seen or beside another GradGuard.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_gradguard import GradGuard
        >>> trainer = Trainer(callbacks=[GradGuard()], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        *,
        mode: Literal["guard", "halt", "watch"] = "guard",
        detectors: Sequence[Detector] | None = None,
        remedies: Sequence[Remedy] | None = None,
        exclude: Sequence[str] = (),
        policy: Policy | None = None,
        snapshots: SnapshotStore | None = None,
        log_every: int = 50,
        sinks: Sequence[Sink] = (),
        on_incident: Callable[[Incident, Event], object] | None = None,
        journal: bool = True,
        progress_bar: bool = False,
        histograms: bool = False,
        evidence: Evidence | None = None,
        on_exhausted: Literal["stop", "raise", "continue"] = "stop",
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        twins.adopt(GradGuard)
        self.guard = Guard(
            mode=mode,
            detectors=detectors,
            remedies=remedies,
            exclude=exclude,
            sinks=sinks,
            on_incident=on_incident,
            policy=policy,
            snapshots=snapshots,
            log_every=log_every,
            evidence=evidence,
            on_exhausted=on_exhausted,
            on_error=on_error,
        )
        self._journal = checks.flag("journal", journal)
        self._run = new_run()
        self._journal_path: Path | None = None
        self._word = BarWord() if checks.flag("progress_bar", progress_bar) else None
        self._swaps = any(isinstance(remedy, SwapActivation) for remedy in remedies or ())
        # One that the environment asked for gives way to one that the user has passed.
        self._standby = False
        # Made once, since Lightning asks for it at every hook. On standby there may be another guard in the same Trainer, which
        # refuses two of one key.
        self._keys = tuple(self._generate_state_key(mode=mode, **more) for more in ({}, {"standby": True}))
        self._histograms = checks.flag("histograms", histograms)
        # The guard lets go of its sinks at the end of a run; these are there in the next one too.
        self._own_sinks: list[Sink] = []
        self._losses = LossOwners()
        self._batch: Any = None
        self._batch_index: int | None = None
        self._clipping: tuple[LightningModule, Any] | None = None
        # Whether the module clips in a method of its own; asked once, since steps are many.
        self._clips_itself = False

    def __repr__(self) -> str:
        """Return what it looks for and what it may do, by name."""
        return f"Grad{self.guard!r}"

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents of the run, oldest first."""
        return self.guard.incidents

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return self._keys[self._standby]

    def _repr_html_(self) -> str:
        """Return the run so far, as a notebook shows it: from its journal, or else what is known of its incidents."""
        if self._journal_path is not None and self._journal_path.is_file():
            from lightning_gradguard.report import show  # only now, as training needs none

            return show(self._journal_path)._repr_html_()
        cards = "".join(incident._repr_html_() for incident in self.incidents)
        return cards or "<p>GradGuard: no incident so far.</p>"

    # -- life cycle ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be guarded, before training starts."""
        if self._gives_way(trainer):
            return
        _refuse(trainer, stage)
        if stage != "fit":
            return
        if not twins.part(trainer, "utilities.model_helpers.is_overridden")("configure_model", pl_module):
            self.guard.bind(pl_module)

    def _gives_way(self, trainer: Trainer) -> bool:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if isinstance(c, GradGuard) and c is not self]
        if self._standby and others:
            # A new list: Lightning is going through the old one.
            trainer.callbacks = [c for c in callbacks if c is not self]  # type: ignore[attr-defined]
            return True
        self._standby = False
        if any(not c._standby for c in others):
            raise _misconfigured(trainer, "Two GradGuard callbacks in one Trainer would remedy each other's work.")
        return False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the sinks and meet the optimizers, before the first batch."""
        # A module that is built in configure_model has no layers before.
        self.guard.bind(pl_module)
        self._clips_itself = twins.part(trainer, "utilities.model_helpers.is_overridden")(CLIPPING, pl_module)
        strategy = trainer.strategy
        size = trainer.world_size
        self.guard.share(
            Collectives(
                size,
                mean=lambda values: _mean(strategy, values),
                gather=lambda value: [strategy.broadcast(value, src=rank) for rank in range(size)],
                neighbours=trainer.num_devices,
            )
        )
        self._own_sinks += [sink for sink in self.guard.sinks if not any(sink is own for own in self._own_sinks)]
        self.guard.sinks[:] = self._sinks(trainer) + (self._own_sinks if trainer.is_global_zero else [])
        # Weights that come from a checkpoint have been trained, whatever they look like.
        self.guard.resumed = trainer.ckpt_path is not None or trainer.global_step > 0
        # WeightAveraging and StochasticWeightAveraging keep theirs to themselves.
        averages = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        self.guard.followers = tuple(average for average in averages if isinstance(average, nn.Module))
        for optimizer in trainer.optimizers:
            self.guard.attach(optimizer)
        self._warn_of_weights_only(trainer)
        if self.guard.evidence is not None:
            self._place_evidence(trainer, self.guard.evidence)

    def _place_evidence(self, trainer: Trainer, keeper: Keeper) -> None:
        """Tell who keeps the evidence where the run is."""
        given = str(trainer.log_dir or trainer.default_root_dir)
        keeper.directory = (_directory(trainer, given, self._run) or Path.cwd()) / EVIDENCE
        keeper.place = lambda: Place(
            rank=trainer.global_rank,
            processes=trainer.world_size,
            precision=str(trainer.precision),
            epoch=trainer.current_epoch,
            checkpoint=next((path for c in trainer.checkpoint_callbacks if (path := newest(c))), ""),
        )

    def _warn_of_weights_only(self, trainer: Trainer) -> None:
        """Warn of checkpoints that do not tell which activations were swapped: loaded anew, they are another network."""
        if self._swaps and any(getattr(c, "save_weights_only", False) for c in trainer.checkpoint_callbacks):
            twins.part(trainer, "utilities.rank_zero_warn")(
                "GradGuard: a checkpoint with save_weights_only=True does not hold which activations SwapActivation has "
                "swapped; swap them by hand before its weights are used, or save whole checkpoints.",
                category=RuntimeWarning,
            )

    def _sinks(self, trainer: Trainer) -> list[Sink]:
        # Every process must ask for the directory: Lightning broadcasts it.
        given = str(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return []
        directory = _directory(trainer, given, self._run)
        sinks: list[Sink] = [Console()]
        if self._word is not None and trainer.progress_bar_callback is not None:
            sinks.append(self._word.beside(trainer.progress_bar_callback))
        board = twins.part(trainer, "loggers.TensorBoardLogger")
        boards = [logger for logger in trainer.loggers if isinstance(logger, board)]
        if boards:
            log.info("GradGuard: tensorboard --logdir %s shows this run in its GradGuard tab", boards[0].log_dir)
        if self._journal and directory is None:
            log.warning("GradGuard: no journal is written: %s is on no disk of this machine", given)
        elif self._journal and directory is not None:
            # Without a logger the run has no directory of its own, and a healthy one leaves nothing behind.
            lazy = not trainer.loggers
            told = partial(
                log.log, logging.WARNING if lazy else logging.INFO, "GradGuard: the journal of this run is %s"
            )
            known = directory == Path(given.removeprefix("file://"))
            journal = Journal(directory, lazy=lazy, run=self._run, on_open=None if known else told)
            sinks.append(journal)
            self._journal_path = journal.path
        for logger in trainer.loggers:
            if isinstance(logger, board):
                from lightning_gradguard.diagnostics import TensorBoardSink  # only now, since its import takes long

                sinks.append(
                    TensorBoardSink(logger.experiment, optimizers=len(trainer.optimizers), histograms=self._histograms)
                )
            else:
                sinks.append(MetricsSink(logger.log_metrics, optimizers=len(trainer.optimizers)))
        return sinks

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the heatmap of the epoch."""
        self.guard.epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has not been written yet."""
        self.guard.settle()
        self.guard.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put everything back: the exception may come from inside the update, and Lightning skips :meth:`teardown`."""
        self._resume_clipping()
        for put_back in (self.guard.after_step, self.guard.flush, lambda: self._put_back(trainer)):
            try:
                put_back()
            except (
                Exception
            ) as error:  # A device that is gone answers nothing more, and it is the first error that tells why.
                log.warning("GradGuard: after %r this failed too: %r", exception, error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every hook off and close the sinks."""
        if stage == "fit":
            self._put_back(trainer)

    def _put_back(self, trainer: Trainer) -> None:
        self._after_update()
        try:
            self.guard.close()
        finally:
            # The strategy's collectives end with the run, and cannot be pickled.
            self.guard.share()
            self._batch = None
            self._losses.drop()

    # -- one step ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch at hand, as a suspect; augment it if that was decided."""
        self._batch, self._batch_index = self.guard.augment(batch), batch_idx
        # Last, right before the module draws random numbers.
        self.guard.before_forward(self._batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Sum the loss over the micro-batches of a step; Lightning has divided it by their number."""
        self.guard.follow(loss)
        self._losses.backward(loss, trainer.optimizers)
        if self._losses.parted:
            self.guard.forget_losses()
            self._losses.parted = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Hand the gradients to the guard, inside ``optimizer.step``, right before clipping and update."""
        self._resume_clipping()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        report = self.guard.before_step(
            optimizer,
            loss=self._take_loss(optimizer, scaler),
            batch=self._batch,
            batch_index=self._batch_index,
            step=trainer.global_step,
            scaler=scaler,
            clips_follow=bool(trainer.gradient_clip_val) or self._clips_itself,
        )
        if report.skipped:
            self._suspend_clipping(pl_module)
        if report.stop and self.guard.on_exhausted == "stop":
            self._stop(trainer, report)

    def _take_loss(self, optimizer: Optimizer, scaler: Any) -> Tensor | None:
        loss = self._losses.of(optimizer)
        return loss / scaler.get_scale() if loss is not None and scaler is not None and scaler.is_enabled() else loss

    def _stop(self, trainer: Trainer, report: StepReport) -> None:
        trainer.should_stop = True
        reason = report.decision.reason if report.decision is not None else "the budget is spent"
        if trainer.is_global_zero:
            log.error("GradGuard stops the run at step %d: %s.\n%s", trainer.global_step, reason, self.guard.report())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put back what was changed for the update."""
        self._after_update()

    def _after_update(self) -> None:
        self.guard.after_step()
        self._resume_clipping()

    def _suspend_clipping(self, pl_module: LightningModule) -> None:
        # The hook comes next, and may be the module's own: by value, torch raises where there is no gradient to clip.
        own = vars(pl_module)
        self._clipping = pl_module, own.get(CLIPPING)
        own[CLIPPING] = _clip_nothing

    def _resume_clipping(self) -> None:
        if self._clipping is None:
            return
        (pl_module, before), self._clipping = self._clipping, None
        del vars(pl_module)[CLIPPING]
        if before is not None:
            vars(pl_module)[CLIPPING] = before

    # -- checkpoint ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the losses of every process into the one state that is saved."""
        # Lightning enters this on all processes, and waits for them right after; after an exception it may be only one.
        if self.guard.processes > 1 and not trainer.interrupted:
            self.guard.settle()
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return what the guard has learned, and the id by which the journal knows the run."""
        return {**self.guard.state_dict(), "run": self._run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take back a pickled state, in a process where the other twin may be loaded."""
        twins.adopt(GradGuard)
        vars(self).update(state)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Swap activations as they were when the checkpoint was written, for validation and prediction too."""
        restore_activations(pl_module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        state, run = state_dict, self._run
        if isinstance(state_dict, dict):
            state = dict(state_dict)
            run = str(state.pop("run", run))  # Older versions wrote none.
        self.guard.load_state_dict(state)
        self._run = run


def from_environment() -> list[Callback]:
    """Return a guard for a Trainer whose callbacks do not name one, if the variable ``LIGHTNING_GRADGUARD`` asks for it.

    Lightning calls this for every Trainer, through the entry point ``lightning.pytorch.callbacks_factory``; its twin through
    ``pytorch_lightning.callbacks_factory``.
    """
    if os.environ.get("LIGHTNING_GRADGUARD", "").lower() in ("", "0", "false", "no", "off"):
        return []
    guard = GradGuard()
    guard._standby = True
    return [guard]


def _refuse(trainer: Trainer, stage: str) -> None:
    """Raise MisconfigurationException for what cannot be guarded."""
    kind = type(trainer.strategy)
    names = [base.__name__ for base in kind.__mro__]
    for name in names if stage == "fit" else ():
        if name in REFUSED:
            raise _misconfigured(trainer, f"GradGuard cannot guard a run under {kind.__name__}: {REFUSED[name]}.")
    if stage == "fit" and "ModelParallelStrategy" in names and not can_sum_over_shards():
        raise _misconfigured(
            trainer,
            f"GradGuard cannot guard a run under {kind.__name__} with torch {torch.__version__}: DTensor, over whose "
            "shards norms are summed, became public with torch 2.5.",
        )


def _misconfigured(trainer: Trainer, message: str) -> Exception:
    """Return the MisconfigurationException of the Trainer's own package."""
    error: Exception = twins.part(trainer, "utilities.exceptions.MisconfigurationException")(message)
    return error


def _directory(trainer: Trainer, given: str, run: str) -> Path | None:
    """Return the directory of this very run, which ``trainer.log_dir`` is with Lightning's own file loggers only; None for a remote one."""
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


def newest(checkpoints: Any) -> str:
    """Return the newest checkpoint that a ModelCheckpoint has written, or nothing."""
    return str(getattr(checkpoints, "_last_checkpoint_saved", "") or getattr(checkpoints, "last_model_path", ""))


def _clip_nothing(*_: Any, **__: Any) -> None:
    """Stand in for the clipping hook on a held step, whose gradients have been taken away."""


def _mean(strategy: Strategy, values: list[float]) -> list[float]:
    reduced = strategy.reduce(torch.tensor(values, dtype=torch.float32, device=strategy.root_device))
    assert isinstance(reduced, Tensor)
    means: list[float] = reduced.tolist()
    return means
