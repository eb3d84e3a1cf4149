"""GradGuard, the Lightning callback. One idea: it translates hooks, each in a few lines, and decides nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradguard import twins
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics import Event, Sink
from lightning_gradguard.evidence import Evidence
from lightning_gradguard.guard import Guard
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Incident
from lightning_gradguard.remedies import Remedy, restore_activations
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.trainer.clipping import SuspendedClipping
from lightning_gradguard.trainer.ending import put_back_after, stop
from lightning_gradguard.trainer.marking import CheckpointMarks
from lightning_gradguard.trainer.micro_batches import MicroBatches
from lightning_gradguard.trainer.record import RunRecord
from lightning_gradguard.trainer.refusal import refuse
from lightning_gradguard.trainer.run import begin, end
from lightning_gradguard.trainer.standby import Standby, asked_for, on_standby
from lightning_gradguard.witnesses import Witness

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback, *_ = twins.callbacks()  # of whichever twin is there; the other's is added when a guard is made


class GradGuard(Callback):
    """Detect gradient explosions, remedy them, and log what happened.

    No argument is needed. A healthy run ends bit-identical to the same run without the callback. The Trainer may be
    ``lightning.pytorch``'s or that of its twin ``pytorch_lightning``.

    Args:
        mode: ``"guard"`` acts; ``"halt"`` raises TrainingDiverged before a bad step is applied; ``"watch"`` reports.
        detectors: What to look for; by default one for each form of trouble; ``[]`` looks for nothing.
        remedies: What may be done; leave one out to switch it off (``[]``: all). Without Skip NaN reaches the weights.
        exclude: Detectors and remedies that are left out, by name (``["drift", "backoff"]``) or shell-style pattern.
        policy: The ladder of remedies, its cool-downs and budget.
        snapshots: How often the state is copied to host memory, and how many copies are kept.
        log_every: Optimizer steps between two points on TensorBoard.
        journal: Whether the record is also written to ``gradguard.jsonl`` in the run's directory or ``gradguard_logs``.
        progress_bar: Whether the progress bar says how it goes, beside its numbers (``gg: ok``, ``gg: 2 skipped``).
        sinks: Where the record goes besides, on the first process; one added to ``guard.guard.sinks`` stays too.
        on_incident: Called as ``on_incident(incident, event)`` there when an incident opens, goes on and closes.
        histograms: Whether TensorBoard also gets histograms of log10 of each layer's gradients, once in ``log_every``.
        evidence: How much is kept of what a bad step was computed from; None for nothing but under ``mode="halt"``.
        compare_replicas: Steps between two comparisons of the processes' weights, bit by bit; None for no comparison.
        skip_batches: Journal, bundle or directory of an earlier run: the batches accused there are left out again.
        witnesses: What is watched besides updates and Adam's second moment: ``AttentionLogits``, ``RouterLoad``.
        on_exhausted: With the budget spent: ``"stop"``, ``"raise"`` TrainingDiverged, or ``"continue"`` with first aid.
        on_error: When a detector or remedy itself fails: ``"raise"`` GuardError, or ``"warn"`` and do without it.

    Raises:
        ValueError: An argument is out of range; the message names it, the constraint and the value.
        MisconfigurationException: At setup, under a strategy that hides gradients, or beside one of another mode.
        RuntimeError: From Lightning, as the Trainer is made: two of the same mode, told by their ``state_key``.

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
        compare_replicas: int | None = None,
        skip_batches: str | os.PathLike[str] | None = None,
        witnesses: Sequence[Witness] = (),
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
            compare_replicas=compare_replicas,
            skip_batches=skip_batches,
            witnesses=witnesses,
            on_exhausted=on_exhausted,
            on_error=on_error,
        )
        self._record = RunRecord(journal=journal, progress_bar=progress_bar, histograms=histograms)
        self.standby = Standby(*(self._generate_state_key(mode=mode, **more) for more in ({}, {"standby": True})))
        self._inputs, self._clipping = MicroBatches(), SuspendedClipping()
        self._marks = CheckpointMarks(self.guard.tell_of_checkpoint)

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
        return self.standby.key

    def _repr_html_(self) -> str:
        """Return the run so far, as a notebook shows it."""
        return self._record.html(self.incidents)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be guarded, before training starts."""
        if self.standby.gives_way(trainer, self, GradGuard) or stage != "fit":
            return
        refuse(trainer)
        if not twins.part(trainer, "utilities.model_helpers.is_overridden")("configure_model", pl_module):
            self.guard.bind(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the sinks and meet the optimizers, before the first batch."""
        # A module that is built in configure_model has no layers before.
        self.guard.bind(pl_module)
        self._clipping.look(trainer, pl_module)
        self._record.open(trainer, self.guard.sinks, self._marks)
        begin(self.guard, trainer, key=self.state_key, run=self._record.run)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the heatmap of the epoch."""
        self.guard.epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no weights that the last update has spoilt, and write what has not been written yet."""
        self.guard.finish()
        self.guard.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put everything back: the exception may come from inside the update, and Lightning skips :meth:`teardown`."""
        self._clipping.resume()
        put_back_after(exception, (self.guard.after_step, self.guard.flush, self._put_back))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every hook off and close the sinks."""
        if stage == "fit":
            self._marks.look(trainer)
            self._put_back()

    def _put_back(self) -> None:
        self.guard.after_step()
        self._clipping.resume()
        self._inputs.forget()
        end(self.guard)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch at hand, as a suspect; augment it if that was decided."""
        self._marks.look(trainer)
        self._inputs.batch, self._inputs.batch_index = self.guard.augment(batch), batch_idx
        # Last, right before the module draws random numbers.
        self.guard.before_forward(batch, batch_idx, trainer.current_epoch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Sum the loss over the micro-batches of a step."""
        self.guard.before_backward()
        self.guard.follow(loss)
        if self._inputs.add_loss(loss, trainer.optimizers):
            self.guard.forget_losses()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Hand the gradients to the guard, inside ``optimizer.step``, right before clipping and update."""
        self._clipping.resume()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        report = self.guard.before_step(
            optimizer,
            loss=self._inputs.take_loss(optimizer, scaler),
            batch=self._inputs.batch,
            batch_index=self._inputs.batch_index,
            step=trainer.global_step,
            scaler=scaler,
            clips_follow=self._clipping.follows(trainer),
        )
        self._marks.judged(report)
        if report.skipped:
            self._clipping.suspend(pl_module)
        if report.stop and self.guard.on_exhausted == "stop":
            stop(trainer, report, self.guard.report())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put back what was changed for the update."""
        self.guard.after_step()
        self._clipping.resume()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint, and let the losses of every process into the one state that is saved."""
        self.guard.saved()
        self._marks.mark(checkpoint, trainer.global_step, self.incidents)
        # Lightning enters this on all processes, and waits for them right after; after an exception it may be only one.
        if self.guard.processes > 1 and not trainer.interrupted:
            self.guard.settle()
            checkpoint["callbacks"][self.state_key] = {**self.guard.state_dict(together=True), "run": self._record.run}

    def state_dict(self) -> dict[str, Any]:
        """Return what the guard has learned, and the id by which the journal knows the run."""
        return {**self.guard.state_dict(), "run": self._record.run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take back a pickled state, in a process where the other twin may be loaded."""
        twins.adopt(GradGuard)
        vars(self).update(state)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Swap activations as they were when the checkpoint was written, for validation and prediction too."""
        restore_activations(pl_module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.guard.load_state_dict(state_dict)
        if isinstance(state_dict, dict):
            self._record.run = str(state_dict.get("run", self._record.run))  # Older versions wrote none.


def from_environment() -> list[Callback]:
    """Return a guard on standby if the variable ``LIGHTNING_GRADGUARD`` asks for one; each Trainer calls this."""
    return [on_standby(GradGuard())] if asked_for() else []
