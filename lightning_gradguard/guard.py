"""The guard in pure torch. One idea: what it is made of, and what a training loop calls at each step.

:class:`Guard` serves Lightning (through :class:`lightning_gradguard.GradGuard`), Fabric and plain loops alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gradguard import checks
from lightning_gradguard.deferred_step import DeferredStep
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics.listener import Listener
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.evidence import Evidence
from lightning_gradguard.evidence.keeper import Keeper, keeper_of
from lightning_gradguard.guarded_step import GuardedStep
from lightning_gradguard.parts import chosen
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Incident
from lightning_gradguard.remedies import Remedy
from lightning_gradguard.session import Session
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.step import Run, StepInputs, StepReport
from lightning_gradguard.step.copying import copy_ahead
from lightning_gradguard.step.leaving_out import to_leave_out
from lightning_gradguard.step.witnessing import attend
from lightning_gradguard.witnesses import Witness


class Guard(Session):
    """Watch the gradients of a module's optimizers, and act before a bad update is applied.

    Call :meth:`before_step` between ``backward()`` and ``optimizer.step()``; nothing else is needed. With a GradScaler,
    call ``scaler.unscale_(optimizer)`` first (unless the optimizer is fused) and pass the scaler.

    Args:
        module: The module that is trained; it may be named later, with :meth:`bind`.
        mode: ``"guard"`` acts; ``"halt"`` ends the run at its first bad step, with the evidence, by raising
            :class:`TrainingDiverged` before the weights are touched; ``"watch"`` changes nothing and only reports.
        detectors: What to look for; by default one detector for each form of trouble; ``[]`` looks for nothing.
        remedies: What may be done; leave one out to switch it off; ``[]`` does nothing. Without :class:`Skip` (or
            without a detector of non-finite gradients) a NaN reaches the weights, of which a warning tells.
        policy: The ladder, its cool-downs and budget.
        snapshots: How often the state is copied to host memory, and how many copies are kept.
        exclude: Detectors and remedies that are left out, by name (``["drift", "backoff"]``) or shell-style pattern.
        sinks: Where the record goes.
        on_incident: Called as ``on_incident(incident, event)`` when an incident opens, goes on and closes.
        log_every: Optimizer steps between two windows sent to the sinks.
        evidence: Whether what a bad step was computed from is kept in a bundle, and how much of it; by default under
            ``mode="halt"`` only.
        compare_replicas: Optimizer steps between two comparisons of the weights of all processes that should hold the
            same, bit by bit; the ranks that have parted are named. By default none are made.
        skip_batches: A journal, a bundle or a directory of them: the batches that are accused there are computed, but
            not applied, where they come again at the same place; for a run that is started anew.
        witnesses: What is watched once a window besides the size of updates and Adam's second moment, and only
            reported: :class:`~lightning_gradguard.witnesses.AttentionLogits`,
            :class:`~lightning_gradguard.witnesses.RouterLoad`. They need :meth:`before_forward` to be called.
        on_exhausted: What to do when the budget is spent: ``"stop"`` (``report.stop`` is then True), ``"raise"``
            :class:`TrainingDiverged`, or ``"continue"`` with clipping and skipping steps only.
        on_error: When a detector or remedy itself fails: ``"raise"`` GuardError, or ``"warn"`` and do without it.

    Raises:
        ValueError: An argument is out of range; the message names it.

    Example:
        >>> import torch
        >>> from lightning_gradguard import Guard
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> guard = Guard(model)
        >>> loss = model(torch.ones(8, 4)).square().mean()
        >>> loss.backward()
        >>> guard.before_step(optimizer, loss=loss).skipped
        False
        >>> optimizer.step()
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        mode: Literal["guard", "halt", "watch"] = "guard",
        detectors: Sequence[Detector] | None = None,
        remedies: Sequence[Remedy] | None = None,
        policy: Policy | None = None,
        snapshots: SnapshotStore | None = None,
        exclude: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
        on_incident: Callable[[Incident, Event], object] | None = None,
        log_every: int = 50,
        evidence: Evidence | None = None,
        compare_replicas: int | None = None,
        skip_batches: str | os.PathLike[str] | None = None,
        witnesses: Sequence[Witness] = (),
        on_exhausted: Literal["stop", "raise", "continue"] = "stop",
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        self.mode = checks.choice("mode", mode, ("guard", "halt", "watch"))
        self.on_exhausted = checks.choice("on_exhausted", on_exhausted, ("stop", "raise", "continue"))
        self.on_error = checks.choice("on_error", on_error, ("raise", "warn"))
        sinks = checks.instances("sinks", sinks, Sink)
        if on_incident is not None:
            sinks.append(Listener(checks.function("on_incident", on_incident)))
        recorder = Recorder(sinks, checks.whole("log_every", log_every, least=1))
        run = Run(mode, recorder)
        run.evidence = keeper_of(evidence, mode, partial(recorder.warn, "evidence"))
        run.replicas_every = checks.whole_or_none("compare_replicas", compare_replicas, least=1)
        deferred = DeferredStep(run)
        ends = "raise" if mode == "halt" else on_exhausted
        self._step = GuardedStep(run, deferred, on_exhausted=ends, on_error=on_error)
        isolate = self._step.isolate if on_error == "warn" else None
        parts = chosen(detectors, remedies, policy, snapshots, exclude=exclude, isolate=isolate, witnesses=witnesses)
        if not parts.detectors:
            recorder.warn("detectors", "no detector is left: nothing is watched for, and no step will be treated")
        run.accused = to_leave_out(skip_batches, mode, parts.remedies, recorder)
        super().__init__(run, parts, deferred)
        if module is not None:
            self.bind(checks.instance("module", module, nn.Module))

    def __repr__(self) -> str:
        """Return what it looks for and what it may do, by name."""
        shown = {"mode": self.mode, **self._parts.named()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def augment(self, batch: Any) -> Any:
        """Augment the tensors of a batch, and return it, if an incident has lately made :class:`Augment` do so.

        On a GPU a snapshot that is due is copied beside the batch's work from here on. Call it before the forward pass
        of a loop of your own; the callback does. :meth:`before_step` puts the batch back.
        """
        for track in self._tracks:
            copy_ahead(self._run, track)
        self._tracks.augment(batch)
        return batch

    def before_forward(self, batch: Any, batch_index: int | None = None, epoch: int | None = None) -> None:
        """Note a batch that is about to be computed: where it comes in the run, and, for a bundle, the random states.

        Call it right before the forward pass of a loop of your own, of each micro-batch; the callback does.
        """
        self._run.epoch = epoch
        # Host memory is plentiful; an accelerator's is spent on them only where one of them may be at fault.
        keep = all(track.device == "cpu" or track.incident is not None for track in self._tracks)
        self._passes.take(batch, batch_index, keep=keep)
        if self._parts.witnesses:
            attend(self._run)
        if self._run.accused is not None:
            self._run.accused.before_forward(epoch, batch_index, batch, self._run.collectives)
        if self._run.evidence is not None:
            self._run.evidence.before_forward(self.module, batch, batch_index)

    def before_backward(self) -> None:
        """Look, at the first few steps, whether gradients that were stepped by have been cleared.

        Call it right before each ``backward()`` of a loop of your own; the callback does. Without it a forgotten
        ``zero_grad`` is treated as what it looks like: a rate that is too high.
        """
        if self._tracks.before_backward():
            self._run.recorder.say(
                max(track.number for track in self._tracks),
                "stale gradients",
                "gradients that an update was made with are still there when the next ones are added to them, so that "
                "each update repeats all before it; call zero_grad() before each backward pass",
                once=True,
            )

    @property
    def evidence(self) -> Keeper | None:
        """What keeps the evidence, or None."""
        return self._run.evidence

    def follow(self, loss: Tensor) -> None:
        """Learn the order in which the heatmap lists layers from the graph of a loss: once, as it is being computed.

        Only needed where :meth:`before_step` is given a loss without its graph, or none; the callback calls it.
        """
        self._tracks.follow(loss)

    def forget_losses(self) -> None:
        """Forget all losses: they were not those of the optimizers that they were given for."""
        self._tracks.forget_losses()

    def before_step(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Tensor | float | None = None,
        batch: Any = None,
        batch_index: int | None = None,
        step: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clips_follow: bool = False,
    ) -> StepReport:
        """Judge the gradients and act on them, before ``optimizer.step()``.

        Args:
            optimizer: The optimizer about to step; only its own parameters are looked at.
            loss: The loss of the step, as a second witness.
            batch: The batch, as a suspect.
            batch_index: Its number, for the record.
            step: Number of this step for the record; by default the guard counts.
            scaler: The GradScaler that owns this step.
            clips_follow: Whether others clip the gradients inside ``optimizer.step``: after this call, and unseen.

        Raises:
            GuardError: A detector or remedy failed and ``on_error="raise"``.
            TrainingDiverged: The budget is spent and ``on_exhausted="raise"``, or ``mode="halt"`` and the step is bad.
        """
        track = self._tracks.of(optimizer) or self.attach(optimizer)
        inputs = StepInputs(loss, batch, batch_index, step, scaler, self._passes.earlier)
        self._passes.over = True
        return self._step.take(track, inputs, clips_follow=clips_follow)

    def after_step(self) -> None:
        """Put learning rates back; only needed where ``optimizer.step()`` was not reached."""
        self._tracks.after_step()
