"""The guard in pure torch: what a training loop calls, and the life of what is behind it.

:class:`Guard` serves Lightning (through :class:`lightning_gradguard.GradGuard`), Fabric and plain loops alike.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradguard import checks
from lightning_gradguard.attribution.probe import can_leave_graphs
from lightning_gradguard.attribution.weights import outlandish
from lightning_gradguard.checkpoint import VERSION, migrate, rehearse, usable
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.deferred_step import DeferredStep
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics.listener import Listener
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.errors import GuardError, TrainingDiverged
from lightning_gradguard.evidence import Evidence
from lightning_gradguard.evidence.keeper import Keeper
from lightning_gradguard.layers.names import compiled, unwrapped
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.optimizer_wrappers import innermost
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import GradientStatistics, Incident, incident_from_json, to_json
from lightning_gradguard.remedies import Remedy
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.step import Run, Step, StepReport
from lightning_gradguard.step.recording import log
from lightning_gradguard.track_state import go_on_from
from lightning_gradguard.tracks import Tracks


class Guard:
    """Watch the gradients of a module's optimizers, and act before a bad update is applied.

    Call :meth:`before_step` between ``backward()`` and ``optimizer.step()``; nothing else is needed. With a GradScaler,
    call ``scaler.unscale_(optimizer)`` first (unless the optimizer is fused) and pass the scaler.

    Args:
        module: The module that is trained; it may be named later, with :meth:`bind`.
        mode: ``"guard"`` acts; ``"halt"`` ends the run at its first bad step, with the evidence, by raising :class:`TrainingDiverged`
            before the weights are touched; ``"watch"`` changes nothing and only reports.
        detectors: What to look for; by default one detector for each form of trouble.
        remedies: What may be done; leave one out to switch it off. Without :class:`Skip` (or without a detector of
            non-finite gradients) a NaN reaches the weights, of which a warning tells.
        policy: The ladder, its cool-downs and budget.
        snapshots: How often the state is copied to host memory, and how many copies are kept.
        exclude: Shell-style patterns of detectors and remedies, by name, that are left out: ``["drift", "backoff"]``.
        sinks: Where the record goes.
        on_incident: Called as ``on_incident(incident, event)`` when an incident opens, goes on and closes.
        log_every: Optimizer steps between two windows sent to the sinks.
        evidence: Whether what a bad step was computed from is kept in a bundle, and how much of it; by default under
            ``mode="halt"`` only.
        on_exhausted: What to do when the budget is spent: ``"stop"`` (``report.stop`` is then True), ``"raise"``
            :class:`TrainingDiverged`, or ``"continue"`` with clipping and holding steps only.
        on_error: What to do when a detector or remedy itself fails: ``"raise"`` :class:`GuardError`, or ``"warn"`` once
            and go on without it.

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
        on_exhausted: Literal["stop", "raise", "continue"] = "stop",
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        self.mode = checks.choice("mode", mode, ("guard", "halt", "watch"))
        self.on_exhausted = checks.choice("on_exhausted", on_exhausted, ("stop", "raise", "continue"))
        self.on_error = checks.choice("on_error", on_error, ("raise", "warn"))
        sinks = checks.instances("sinks", sinks, Sink)
        if on_incident is not None:
            sinks.append(Listener(checks.function("on_incident", on_incident)))
        self._recorder = Recorder(sinks, checks.whole("log_every", log_every, least=1))
        self._tracks = Tracks(self._new_track)
        self._run = Run(mode, self._recorder, self._tracks)
        if evidence is not None or mode == "halt":
            kept = checks.instance("evidence", evidence or Evidence(), Evidence)
            self._run.evidence = Keeper(kept, batch=mode == "halt", warn=self._lost)
        self._step = Step(self._run)
        self._deferred = DeferredStep(self._run)
        self._investigation = self._run.investigation
        self._detectors = checks.instances(
            "detectors", default_detectors() if detectors is None else detectors, Detector
        )
        self._remedies = checks.instances("remedies", default_remedies() if remedies is None else remedies, Remedy)
        gone = checks.matching("exclude", exclude, [d.name for d in self._detectors] + [r.name for r in self._remedies])
        self._detectors = [detector for detector in self._detectors if detector.name not in gone]
        self._remedies = [remedy for remedy in self._remedies if remedy.name not in gone]
        self._policy = checks.instance("policy", Policy() if policy is None else policy, Policy)
        self._snapshots = checks.instance(
            "snapshots", SnapshotStore() if snapshots is None else snapshots, SnapshotStore
        )
        self._module: nn.Module | None = None
        # Whether the weights come from a checkpoint; averages of them, kept elsewhere, that go back with them.
        self.resumed = False
        self.followers: tuple[nn.Module, ...] = ()
        if module is not None:
            self.bind(module)

    def __repr__(self) -> str:
        """Return what it looks for and what it may do, by name."""
        parts = {"detectors": [d.name for d in self._detectors], "remedies": [r.name for r in self._remedies]}
        shown = {"mode": self.mode, **parts, "policy": self._policy, "snapshots": self._snapshots}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def share(self, collectives: Collectives | None = None) -> None:
        """Set the collectives of several processes; without an argument those of one process."""
        self._run.collectives = collectives or Collectives()

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self._run.collectives.size

    @property
    def module(self) -> nn.Module:
        """The module that is guarded."""
        if self._module is None:
            raise GuardError("the guard has no module yet: name it in Guard(module) or guard.bind(module)")
        return self._module

    def bind(self, module: nn.Module) -> None:
        """Guard this module; what was learned of another one is forgotten. What Fabric or DDP have put around it is taken off.

        Raises:
            ValueError: A remedy names layers that the module does not have.
        """
        module = unwrapped(module)
        for remedy in self._remedies:
            try:
                remedy.check(module)
            except ValueError:
                raise
            except Exception as error:
                raise GuardError(f"remedy {remedy.name!r} failed: {error!r}") from error
        if self._module is not None and self._module is not module:
            self._tracks.forget()
            self._recorder.incidents = []
            self._investigation.forget()
        self._module = self._run.module = module

    @property
    def sinks(self) -> list[Sink]:
        """Where the record goes; a sink may be added at any time."""
        return self._recorder.sinks

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents of the run, oldest first, the open one included."""
        return tuple(self._recorder.incidents)

    def attach(self, optimizer: torch.optim.Optimizer) -> OptimizerTrack:
        """Begin to guard an optimizer; :meth:`before_step` does so by itself at its first call.

        Attach before the first forward pass, so that a first batch that is corrupt leaves no trace in BatchNorm either.
        Wrappers of accelerate, Fabric and Lightning are taken as what they wrap.

        Raises:
            TypeError: It is no optimizer, and wraps none.
        """
        if self._run.running is None:
            self._run.running = RunningStatistics(self.module)
        self._investigation.arm_again(self.module)
        optimizer = innermost(optimizer)
        track = self._tracks.of(optimizer)
        if track is None:
            track, learned = self._tracks.meet(self.module, optimizer)
            track.begin_run(resumed=self.resumed, followers=self.followers)
            if learned is not None:
                go_on_from(track, learned)
            elif track.untouched and (not compiled(self.module) or (can_leave_graphs() and outlandish(self.module))):
                # Weights and gradients of a start tell nothing without their scale; what becomes of the signal does.
                self._investigation.arm(track.index, self.module, backward=False)
        return track

    def _new_track(self, index: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerTrack:
        return OptimizerTrack(
            index,
            module,
            optimizer,
            detectors=self._detectors,
            remedies=self._remedies,
            policy=self._policy,
            snapshots=self._snapshots,
            isolate=self._isolate if self.on_error == "warn" else None,
        )

    def augment(self, batch: Any) -> Any:
        """Augment a batch in place, and return it, if an incident has lately made :class:`Augment` do so.

        Call it before the forward pass of a loop of your own; the callback does. :meth:`before_step` puts the batch back.
        """
        # A second one, of another optimizer, would put back what the first has made.
        any(track.remedies.before_forward(batch) for track in self._tracks)
        return batch

    def before_forward(self, batch: Any, batch_index: int | None = None) -> None:
        """Note a batch that is about to be computed, and the random states, for a bundle of evidence; nothing where none is kept.

        Call it right before the forward pass of a loop of your own, of each micro-batch; the callback does.
        """
        if self._run.evidence is not None:
            self._run.evidence.before_forward(self.module, batch, batch_index)

    @property
    def evidence(self) -> Keeper | None:
        """What keeps the evidence, or None."""
        return self._run.evidence

    def _lost(self, sentence: str) -> None:
        self._recorder.warn("evidence", sentence)

    def follow(self, loss: Tensor) -> None:
        """Learn the order in which the heatmap lists layers from the graph of a loss: once, as it is being computed.

        Only needed where :meth:`before_step` is given a loss without its graph, or none; the callback calls it.
        """
        for track in self._tracks:
            track.follow(loss)

    def forget_losses(self) -> None:
        """Forget all losses: they were not those of the optimizers that they were given for."""
        for track in self._tracks:
            track.baseline.forget_losses()

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
            clips_follow: Whether the gradients are clipped by others inside ``optimizer.step``, so after this call and unseen.

        Raises:
            GuardError: A detector or remedy failed and ``on_error="raise"``.
            TrainingDiverged: The budget is spent and ``on_exhausted="raise"``, or ``mode="halt"`` and the step is bad.
        """
        track = self._tracks.of(optimizer) or self.attach(optimizer)
        track.begin()
        track.gate.clips_follow = clips_follow
        try:
            if track.gate.waiting:
                self._deferred.before(track)
            if self._run.evidence is not None:
                self._run.evidence.hand.step(loss)
            track.refresh()
            track.look_at_state(alone=self.processes == 1)
            if isinstance(loss, Tensor) and loss.grad_fn is not None:
                track.follow(loss)
            report = self._deferred.leave(track, loss, batch, batch_index, step, scaler)
            if report is None:
                report = self._step.take(track, loss, batch, batch_index, step, scaler)
            if (bound := track.clipping_seen.add(report.statistics.norm)) is not None:
                self._recorder.warn(
                    f"clipped {track.index}",
                    f"every gradient of the last steps has the norm {bound:g}: call before_step before clipping, or no explosion is seen",
                )
            if report.stop:
                self._exhausted(track, report)
            return report
        except Exception as error:
            self._never_worse(track, error)
        return StepReport(GradientStatistics(track.steps if step is None else step, (), np.zeros(0), math.nan))

    def settle(self) -> None:
        """Learn of the last step, and average the losses that are still each process's own: one process's state is that of all.

        Every process must call it at the same point; what is learned from the losses, and when, does not change.
        """
        for track in self._tracks:
            self._deferred.catch_up(track)
            track.joint_loss.settle(self._run.collectives)

    def _catch_up(self) -> None:
        """Learn of steps that were left to their devices, where no other process need take part; else :meth:`settle` does."""
        if self.processes == 1:
            for track in self._tracks:
                self._deferred.catch_up(track)

    # -- when all else fails -------------------------------------------------------------------------------------------

    def _exhausted(self, track: OptimizerTrack, report: StepReport) -> None:
        ends = "raise" if self.mode == "halt" else self.on_exhausted
        if ends == "continue":
            return
        if track.incident is not None and track.incident.helped is None:
            # It stays the open one: a loop that goes on regardless must not open a new incident at each step.
            step = report.statistics.step
            track.incident = dataclasses.replace(track.incident, closed=step, helped=False, stopped=step)
            self._recorder.replace(track.incident)
            self._recorder.tell("incident", track.incident, "closed")
        if ends == "raise":
            raise TrainingDiverged("\n".join([self.report(), *self._kept(track)]))

    def _kept(self, track: OptimizerTrack) -> list[str]:
        """Return, once they are written, where the bundles are, and how to replay them."""
        mine = "" if track.incident is None else track.incident.bundle
        if self._run.evidence is not None:
            self._run.evidence.wait()
        # All processes wait for those that write: the first to raise ends the others.
        paths = [path for path in self._run.collectives.gather(mine) if path] if self._run.evidence is not None else []
        return [f"lightning-gradguard replay {path} --module <package.Module>" for path in paths]

    def report(self) -> str:
        """Return what happened and what was tried, one line an incident."""
        return self._recorder.report()

    def _never_worse(self, track: OptimizerTrack, error: Exception) -> None:
        """Put everything back after an error; raise it again unless the step may pass as if there were no guard."""
        track.after_update()
        track.gate.drop()
        if isinstance(error, TrainingDiverged):
            raise error
        self._investigation.disarm()
        if self.on_error == "raise":
            raise error
        self._recorder.warn("error", f"the guard itself failed and let the step pass: {error!r}")

    def _isolate(self, error: GuardError) -> None:
        self._recorder.warn(str(error), f"{error}; the run goes on without it")

    # -- life cycle ----------------------------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Put learning rates back; only needed where ``optimizer.step()`` was not reached."""
        for track in self._tracks:
            track.after_update()

    def epoch(self) -> None:
        """Tell the sinks that an epoch has ended."""
        self._recorder.tell("epoch")

    def flush(self) -> None:
        """Send the window under way to the sinks."""
        self._catch_up()
        for track in self._tracks:
            if track.accumulator.steps and track.last is not None:
                log(self._run, track, track.last, 1.0)

    def close(self) -> None:
        """Put everything back, and close the sinks; the guard can be attached again afterwards."""
        try:
            self._catch_up()
        finally:
            self._investigation.rest()
            self._tracks.close()
        try:
            self._tracks.leave()
        finally:
            if self._run.evidence is not None:
                self._run.evidence.close()
            self._run.running = None
            self._recorder.close()

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned: tensors, numbers, strings, lists and dicts only."""
        self._catch_up()
        return {
            "version": VERSION,
            "lanes": self._tracks.state_dict(),
            "incidents": [to_json(i) for i in self._recorder.incidents],
            **self._investigation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = False) -> None:
        """Take back what :meth:`state_dict` returned; optimizers are matched in the order in which they are attached.

        What an earlier version has saved is migrated, and what is new since then takes its default. What still does not fit is
        forgotten with one warning that names it, and training goes on. Of a state of version 1 only the incidents are taken: the rules
        that its numbers were learned by are gone.

        Args:
            state: What was saved.
            strict: Whether to refuse a state of which anything does not fit.

        Raises:
            GuardError: ``strict``, and the state does not fit, or a part cannot load what it saved; nothing has been changed then.
        """
        state = migrate(state)
        parts: dict[str, Any] = {"detectors": self._detectors, "remedies": self._remedies, "policy": self._policy}
        parts["snapshots"] = self._snapshots
        if strict:
            rehearse(state, self._module, isolate=self.on_error == "warn", **parts)
        else:
            state, forgotten = usable(state, self._module, isolate=self.on_error == "warn", **parts)
            if forgotten:
                warnings.warn(
                    "GradGuard: what does not fit of the saved state was forgotten, and is learned anew: "
                    + ", ".join(forgotten),
                    RuntimeWarning,
                    stacklevel=2,
                )
        # Weights that come with a state have been trained, whether or not it tells.
        self.resumed = True
        for track in self._tracks:
            track.untouched = False
        self._recorder.incidents = [incident_from_json(i) for i in state["incidents"]]
        self._tracks.load_state_dict(state["lanes"])
        self._investigation.load_state_dict(state)
        if len(self._tracks):
            # The module's own state has been loaded too, and what is held next must not undo that.
            self._run.running = RunningStatistics(self.module)
            self._investigation.arm_again(self.module)
