"""From the first optimizer that is attached until all is put back: the module, its optimizers, what is learned of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from lightning_gradguard.attribution.probe import can_leave_graphs
from lightning_gradguard.attribution.weights import outlandish
from lightning_gradguard.checkpoint import VERSION, migrate, rehearse, usable
from lightning_gradguard.deferred_step import DeferredStep
from lightning_gradguard.errors import GuardError
from lightning_gradguard.layers.names import compiled, unwrapped
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.optimizer_wrappers import innermost
from lightning_gradguard.parts import Parts
from lightning_gradguard.records import incident_from_json, to_json
from lightning_gradguard.snapshots import Checkpoints
from lightning_gradguard.snapshots.budget import Keeping
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.step import Run
from lightning_gradguard.step.recording import log
from lightning_gradguard.track_state import go_on_from
from lightning_gradguard.tracks import Tracks


class Session:
    """Meet module and optimizers, and let go of them.

    Args:
        run: What the steps of all optimizers have in common.
        parts: What each optimizer has copies of.
        deferred: Knows what devices have found at steps that were left to them.

    Attributes:
        tracks: The optimizers.
    """

    def __init__(self, run: Run, parts: Parts, deferred: DeferredStep) -> None:
        self._run, self._parts, self._deferred = run, parts, deferred
        self.tracks = self._run.tracks = Tracks(parts)
        self._module: nn.Module | None = None

    @property
    def module(self) -> nn.Module:
        """The module that is guarded."""
        if self._module is None:
            raise GuardError("the guard has no module yet: name it in Guard(module) or guard.bind(module)")
        return self._module

    def bind(self, module: nn.Module) -> None:
        """Guard this module; what was learned of another one is forgotten."""
        module = unwrapped(module)
        self._parts.check(module)
        if self._module is not None and self._module is not module:
            self.tracks.forget()
            self._run.recorder.incidents = []
            self._run.investigation.forget()
        self._module = self._run.module = module

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        resumed: bool,
        followers: tuple[nn.Module, ...],
        checkpoints: Checkpoints | None = None,
    ) -> OptimizerTrack:
        """Meet an optimizer, and go on from what was learned of it before.

        Args:
            optimizer: The optimizer; wrappers are taken as what they wrap.
            resumed: Whether the weights come from a checkpoint.
            followers: Averages of the weights, kept elsewhere, that go back with them.
            checkpoints: Those that a trainer writes.
        """
        investigation = self._run.investigation
        if self._run.running is None:
            self._run.running = RunningStatistics(self.module)
        investigation.arm_again(self.module)
        optimizer = innermost(optimizer)
        track = self.tracks.of(optimizer)
        if track is None:
            track, learned = self.tracks.meet(self.module, optimizer)
            track.begin_run(resumed=resumed, followers=followers)
            track.snapshots.checkpoints, track.snapshots.index = checkpoints, track.index
            if learned is not None:
                go_on_from(track, learned)
            elif track.untouched and (not compiled(self.module) or (can_leave_graphs() and outlandish(self.module))):
                # Weights and gradients of a start tell nothing without their scale; what becomes of the signal does.
                investigation.arm(track.index, self.module, backward=False)
        return track

    def saved(self) -> None:
        """Look at the checkpoint that is being written at the next step, where snapshots are checkpoints."""
        for track in self.tracks:
            if track.snapshots.keeping is Keeping.DISK:
                track.snapshots.hurry(track.steps)

    def settle(self) -> None:
        """Learn of the last step, and average the losses that are still each process's own."""
        for track in self.tracks:
            self._deferred.catch_up(track)
            track.joint_loss.settle(self._run.collectives)

    def catch_up(self) -> None:
        """Learn of steps that were left to their devices, where no other process need take part; else :meth:`settle` does."""
        if self._run.collectives.size == 1:
            for track in self.tracks:
                self._deferred.catch_up(track)

    def flush(self) -> None:
        """Send the window under way to the sinks."""
        self.catch_up()
        for track in self.tracks:
            if track.accumulator.steps and track.last is not None:
                log(self._run, track, track.last, 1.0)

    def close(self) -> None:
        """Put everything back, and keep what was learned for the next time that an optimizer is met."""
        try:
            self.catch_up()
        finally:
            self._run.investigation.rest()
            self.tracks.close()
        try:
            self.tracks.leave()
        finally:
            if self._run.evidence is not None:
                self._run.evidence.close()
            self._run.running = None
            self._run.recorder.close()

    def state_dict(self, *, together: bool) -> dict[str, Any]:
        """Return everything learned. Its keys are those of older versions, whatever the parts are called now.

        Args:
            together: Whether every process calls this at the same point.
        """
        self.catch_up()
        return {
            "version": VERSION,
            "lanes": self.tracks.state_dict(self._run.collectives if together else None),
            "incidents": [to_json(incident) for incident in self._run.recorder.incidents],
            **self._run.investigation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool) -> None:
        """Take back what :meth:`state_dict` returned, once it is sure to fit; of one that does not, what does unless ``strict``."""
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
                    stacklevel=3,
                )
        # Weights that come with a state have been trained, whether or not it tells.
        for track in self.tracks:
            track.untouched = False
        self._run.recorder.incidents = [incident_from_json(i) for i in state["incidents"]]
        self.tracks.load_state_dict(state["lanes"])
        self._run.investigation.load_state_dict(state)
        if len(self.tracks):
            # The module's own state has been loaded too, and what is kept of running statistics must not undo that.
            self._run.running = RunningStatistics(self.module)
            self._run.investigation.arm_again(self.module)
