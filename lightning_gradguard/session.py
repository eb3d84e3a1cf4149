"""A guarded run beside its steps. One idea: its life, from the first optimizer that is met until all is put back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_gradguard.attribution.probe import can_leave_graphs
from lightning_gradguard.attribution.weights import outlandish
from lightning_gradguard.checkpoint import VERSION, migrate, rehearse, usable
from lightning_gradguard.deferred_step import DeferredStep
from lightning_gradguard.diagnostics.sink import Sink
from lightning_gradguard.errors import GuardError
from lightning_gradguard.layers.names import compiled, unwrapped
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.optimizer_wrappers import innermost
from lightning_gradguard.parts import Parts
from lightning_gradguard.records import CheckpointRecord, Incident, incident_from_json, to_json
from lightning_gradguard.snapshots import Checkpoints
from lightning_gradguard.snapshots.budget import Keeping
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.step import Run
from lightning_gradguard.step.finishing import finish
from lightning_gradguard.step.inputs import Passes
from lightning_gradguard.step.recording import log
from lightning_gradguard.track_state import go_on_from
from lightning_gradguard.tracks import Tracks


class Session:
    """Meet module and optimizers, keep what is learned of them, and let go of them.

    Args:
        run: What the steps of all optimizers have in common.
        parts: What each optimizer has copies of.
        deferred: Knows what devices have found at steps that were left to them.

    Attributes:
        resumed: Whether the weights come from a checkpoint.
        followers: Averages of the weights, kept elsewhere, that go back with them.
        checkpoints: Those that a trainer writes, or None.
    """

    def __init__(self, run: Run, parts: Parts, deferred: DeferredStep) -> None:
        self._run, self._parts, self._deferred = run, parts, deferred
        self._tracks = self._run.tracks = Tracks(parts)
        self._module: nn.Module | None = None
        self._passes = Passes()
        self.resumed = False
        self.followers: tuple[nn.Module, ...] = ()
        self.checkpoints: Checkpoints | None = None

    def share(self, collectives: Collectives | None = None) -> None:
        """Set the collectives of several processes; without an argument those of one process."""
        self._run.collectives = collectives or Collectives()

    def until_end(self, remaining: Callable[[], float] | None = None) -> None:
        """Set what tells the share of the run that is left, from 0 to 1; without an argument its length is unknown."""
        self._run.remaining = remaining

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
        """Guard this module, without what Fabric or DDP have put around it; forget what was learned of another.

        Raises:
            ValueError: A remedy names layers that the module does not have.
        """
        module = unwrapped(module)
        self._parts.check(module)
        if self._module is not None and self._module is not module:
            self._tracks.forget()
            self._run.recorder.incidents = []
            self._run.investigation.forget()
        self._module = self._run.module = module

    @property
    def sinks(self) -> list[Sink]:
        """Where the record goes; a sink may be added at any time."""
        return self._run.recorder.sinks

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents of the run, oldest first, the open one included."""
        return tuple(self._run.recorder.incidents)

    def report(self) -> str:
        """Return what happened and what was tried, one line an incident."""
        return self._run.recorder.report()

    def tell_of_checkpoint(self, record: CheckpointRecord) -> None:
        """Send a verdict on a checkpoint to the sinks."""
        self._run.recorder.tell("checkpoint", record)

    def epoch(self) -> None:
        """Tell the sinks that an epoch has ended."""
        self._run.recorder.tell("epoch")

    def attach(self, optimizer: torch.optim.Optimizer) -> OptimizerTrack:
        """Begin to guard an optimizer; :meth:`before_step` does so by itself at its first call.

        Attach before the first forward pass, so that a first batch that is corrupt leaves no trace in BatchNorm either.
        Wrappers of accelerate, Fabric and Lightning are taken as what they wrap.

        Raises:
            TypeError: It is no optimizer, and wraps none.
        """
        investigation = self._run.investigation
        if self._run.running is None:
            self._run.running = RunningStatistics(self.module)
        investigation.arm_again(self.module)
        optimizer = innermost(optimizer)
        track = self._tracks.of(optimizer)
        if track is None:
            track, learned = self._tracks.meet(self.module, optimizer)
            track.begin_run(resumed=self.resumed, followers=self.followers)
            track.snapshots.disk.checkpoints, track.snapshots.disk.index = self.checkpoints, track.index
            if learned is not None:
                go_on_from(track, learned)
            elif track.untouched and (not compiled(self.module) or (can_leave_graphs() and outlandish(self.module))):
                # Weights and gradients of a start tell nothing without their scale; what becomes of the signal does.
                investigation.arm(track.index, self.module, backward=False)
        return track

    def saved(self) -> None:
        """Learn that a checkpoint is being written, to which a run short of memory may go back.

        Every process must call it at the same point.
        """
        for track in self._tracks:
            if track.snapshots.keeping is Keeping.DISK:
                track.snapshots.hurry(track.steps)

    def settle(self) -> None:
        """Learn of the last step, and average the losses of all processes, so that the state of one is that of all.

        Every process must call it at the same point; what is learned from the losses, and when, does not change.
        """
        for track in self._tracks:
            self._deferred.catch_up(track)
            track.joint_loss.settle(self._run.collectives)

    def finish(self) -> None:
        """Go back to the newest copy where training has ended in the midst of an explosion.

        Every process must call it at the same point, after the last step; the callback does.
        """
        self.settle()
        for track in self._tracks:
            finish(self._run, track)

    def _catch_up(self) -> None:
        """Learn of steps that were left to their devices, unless other processes must take part in it."""
        if self._run.collectives.size == 1:
            for track in self._tracks:
                self._deferred.catch_up(track)

    def flush(self) -> None:
        """Send the window under way to the sinks."""
        self._catch_up()
        for track in self._tracks:
            if track.accumulator.steps and track.last is not None:
                log(self._run, track, track.last, 1.0)

    def close(self) -> None:
        """Put everything back, and close the sinks; the guard can be attached again afterwards."""
        try:
            self.flush()
        finally:
            self._run.investigation.rest()
            self._passes.drop()
            self._tracks.close()
        try:
            self._tracks.leave()
        finally:
            if self._run.evidence is not None:
                self._run.evidence.close()
            self._run.leave()
            self._run.recorder.close()

    def state_dict(self, *, together: bool = False) -> dict[str, Any]:
        """Return everything learned: tensors, numbers, strings, lists and dicts only.

        Args:
            together: Whether every process calls this at the same point, right after :meth:`settle`: then what they
                hold in shards is gathered where it belongs in a checkpoint.
        """
        self._catch_up()
        # The keys are those of older versions, whatever the parts are called now.
        return {
            "version": VERSION,
            "lanes": self._tracks.state_dict(self._run.collectives if together else None),
            "incidents": [to_json(incident) for incident in self._run.recorder.incidents],
            **self._run.investigation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = False) -> None:
        """Take back what :meth:`state_dict` returned; optimizers are matched in the order in which they are attached.

        What an earlier version has saved is migrated, and what is new since then takes its default. What does not fit
        is forgotten with one warning that names it. Of a state of version 1 only the incidents are taken.

        Args:
            state: What was saved.
            strict: Whether to refuse a state of which anything does not fit.

        Raises:
            GuardError: ``strict``, and it does not fit, or a part cannot load its own; nothing has been changed then.
        """
        state = migrate(state)
        if strict:
            rehearse(state, self._module, self._parts)
        else:
            state, forgotten = usable(state, self._module, self._parts)
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
        self._run.recorder.incidents = [incident_from_json(i) for i in state["incidents"]]
        self._tracks.load_state_dict(state["lanes"])
        self._run.investigation.load_state_dict(state)
        if len(self._tracks):
            # The module's own state has been loaded too, and what is kept of running statistics must not undo that.
            self._run.running = RunningStatistics(self.module)
            self._run.investigation.arm_again(self.module)
