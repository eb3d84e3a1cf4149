"""All that the guard knows of one optimizer: its parameters, its memory, its open incident."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.attribution.batch import BatchWitness
from lightning_gradguard.attribution.freshness import drawn
from lightning_gradguard.attribution.optimizer_state import StateWatch
from lightning_gradguard.detectors import Detector
from lightning_gradguard.detectors.detector_set import DetectorSet
from lightning_gradguard.device_gate import DeviceGate
from lightning_gradguard.diagnostics.recorder import Notices
from lightning_gradguard.diagnostics.window import WindowAccumulator
from lightning_gradguard.errors import GuardError
from lightning_gradguard.history.baseline import OVERRUN, Baseline
from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.history.sample import RECENT, YOUNG
from lightning_gradguard.layers.forward_order import ForwardOrder
from lightning_gradguard.layers.trained import Trained
from lightning_gradguard.optimizer_wrappers import StepHook
from lightning_gradguard.policy import Policy
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import (
    GradientStatistics,
    Incident,
    Verdict,
    incident_from_json,
    plain_statistics,
    statistics_from,
    to_json,
)
from lightning_gradguard.remedies import Remedy
from lightning_gradguard.remedies.backoff import LargestRate, largest_rate
from lightning_gradguard.remedies.remedy_set import RemedySet
from lightning_gradguard.snapshots.store import Snapshot, SnapshotStore, restore
from lightning_gradguard.snapshots.when import worth_keeping
from lightning_gradguard.statistics.clipping_seen import ClippingSeen
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.joint_loss import JointLoss
from lightning_gradguard.statistics.update_ratio import build_up
from lightning_gradguard.treatment import LIFE, Treatment

CLOSE = 20
"""Steps that the host judges at once after an alarm that calls for more than the device can do."""


class OptimizerTrack:
    """The guard's memory of one optimizer. Several optimizers (a GAN) have a track each: one's trouble is not the other's.

    Args:
        index: Position of the optimizer.
        module: The root module.
        optimizer: The optimizer.
        detectors: Prototypes; the track works on copies.
        remedies: Prototypes; the track works on copies.
        policy: Prototype; the track works on a copy.
        snapshots: Prototype; the track works on a copy.
        isolate: Told of a detector or remedy that failed and is left out from then on; None lets the error pass.
    """

    def __init__(
        self,
        index: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        detectors: Sequence[Detector],
        remedies: Sequence[Remedy],
        policy: Policy,
        snapshots: SnapshotStore,
        isolate: Callable[[GuardError], None] | None = None,
    ) -> None:
        self.index = index
        self.module = module
        self.optimizer = optimizer
        self.detectors = DetectorSet(detectors, isolate)
        self.remedies = RemedySet(remedies, isolate)
        self.policy = copy.deepcopy(policy)
        self.treatment = Treatment()
        # Whether nobody had trained the module when it was met; whether its first weights are draws, once that was asked.
        self.untouched = False
        self._drawn: bool | None = None
        self.trained = Trained(index, module, optimizer)
        self.order = ForwardOrder()
        self.snapshots = copy.deepcopy(snapshots)
        self.baseline = Baseline()
        self.batches = BatchWitness()
        self.accumulator = WindowAccumulator()
        self.incident: Incident | None = None
        self.last: GradientStatistics | None = None
        self.steps = 0
        # The step at hand as the record counts it: the trainer's, where that is known.
        self.number = 0
        self.gate = DeviceGate()
        # Steps before which the host judges each by itself.
        self.watchful = 0
        self.joint_loss = JointLoss()
        self.odd_loss_interval = ExponentialInterval()
        self._rate = LargestRate(optimizer)
        self.watch = StateWatch(optimizer)
        # When the optimizer's state is looked at because it was written to; whether it is before the step at hand.
        self.audit_interval = ExponentialInterval()
        self.tampered = False
        # Whether the layers are to be looked at in the next step that the host judges.
        self.check_up = False
        self.notices = Notices()
        self.clipping_seen = ClippingSeen()
        # As of the last look at the optimizer's groups.
        self.parameters: dict[str, nn.Parameter] = {}
        self.sharded, self.device = False, "cpu"
        # In a plain loop others may clip before they step; in Lightning's the gradients come only later.
        self._hook = StepHook(optimizer, self.after_update, before=self.gate.settle)

    def refresh(self) -> None:
        """Look up the optimizer's parameters again if its groups have changed.

        Parameter groups may be added in mid-run (gradual unfreezing). The global norm is then that of another set of
        parameters, so what was learned of it is forgotten.
        """
        known = self.trained.groups
        if not self.trained.changed():
            return
        if known:
            self.baseline = Baseline()
            self.detectors.forget()
            self.snapshots.hurry(self.steps)
        self.order.register(self.module)
        self.accumulator.order = self.order.layers
        self.parameters = self.trained.parameters
        self.sharded, self.device = self.trained.sharded, self.trained.device

    def asks_for_life(self) -> bool:
        """Return whether the layers are to be measured in the next batch, since the loss stands still; asked after each accepted step."""
        known = self.baseline
        if not self.treatment.time_to_look(known.count):
            return False
        still = known.losses.flat
        self.snapshots.pinned = self.snapshots.pinned and (still or known.count < 2 * LIFE)
        return still

    def learn_anew(self) -> None:
        """Forget what was learned of another regime of data, loss or task; the next steps tell what is usual now."""
        self.baseline, self.batches = self.baseline.anew(), BatchWitness()
        self.detectors.forget()
        self.snapshots.hurry(self.steps)
        self.untouched = False

    def follow(self, loss: Tensor) -> None:
        """Learn the forward order of the layers from the graph of a loss, once in a session."""
        # FSDP2 computes with parameters of its own, of which only some can be told.
        if not self.sharded and self.order.follow(loss, self.module, self.parameters.values()):
            self.accumulator.order = self.order.layers

    def limit(self) -> float:
        """Return the largest global norm that may pass."""
        return self.detectors.limit(self.baseline)

    def target(self, limit: float) -> float:
        """Return the norm to clip down to: the upper edge of what is usual, since a spike's length means nothing."""
        if self.baseline.count == 0:
            return limit
        return min(limit, self.baseline.norms.typical * math.exp(max(2.0 * self.baseline.norms.spread, math.log(2.0))))

    @property
    def searches(self) -> bool:
        """Whether the optimizer tries points along a line before it takes one, so that what it finds there is its own business."""
        return isinstance(self.optimizer, torch.optim.LBFGS)

    def judge(self, statistics: GradientStatistics) -> list[Verdict]:
        """Ask every detector until one raises an alarm; the alarm, if any, comes last."""
        return [] if self.searches and statistics.finite else self.detectors.judge(statistics, self.baseline)

    def accept(self, statistics: GradientStatistics, limit: float) -> None:
        """Learn from a step that was let through, whose norm was clipped to ``limit`` if above it."""
        self.baseline.accept(min(statistics.norm, limit), statistics.loss)
        updates = self.baseline.updates
        if statistics.update_ratio is not None and statistics.norm <= limit:
            updates.accept(statistics.update_ratio * build_up(self.optimizer))
        if statistics.rate is not None:
            updates.accept_rate(statistics.rate)
            if statistics.rate > updates.rate:
                # Asked again, since a remedy may have lowered it for this very update.
                updates.allow(self.rate() or 0.0)
        self.detectors.accept(statistics, self.baseline)

    def reject(self, statistics: GradientStatistics) -> None:
        """Tell all who learn that a step was skipped; its loss must not count in the mean over processes."""
        self.joint_loss.drop()
        self.watch.skip()
        self.detectors.reject(statistics)

    def begin(self) -> None:
        """Begin a step: from here on anything may be changed for its update, until :meth:`after_update` undoes it."""
        # An update that never happened (a scaler's skip, an exception) left the rates as they were for it.
        self.after_update()
        self.remedies.touched = True

    def after_update(self) -> None:
        """Let lasting remedies undo what they changed for the update, unless that is done already."""
        if not self.remedies.touched:
            return  # As in two of three calls a step: each way out of an update makes sure by itself.
        self.gate.after_update()
        self.remedies.after_update()

    def rate(self) -> float | None:
        """Return the rate that the next update is made with; None where an optimizer finds it by itself."""
        if any(group.get("lr") is None for group in self.optimizer.param_groups):
            return None
        return self.remedies.rate(self._rate.read())

    def rates(self) -> tuple[float, float, float]:
        """Return the rate in use, the largest known good and the smallest known bad; NaN where that is not known."""
        rate = self.rate()
        return math.nan if rate is None else rate, *self.remedies.known_rates()

    @property
    def fresh(self) -> bool:
        """Whether the run began with weights that nobody had trained, and its first step can be gone back to."""
        first = self.snapshots.first
        if not self.untouched or first is None:
            return False
        if self._drawn is None:
            self._drawn = drawn(first.parameters.values())
        return self._drawn

    def loss_can_wait(self, norm: float) -> bool:
        """Return, alike on all processes, whether nothing calls for the loss of a step with this norm as a second witness."""
        known = self.baseline
        if self.incident is not None or known.count < RECENT or known.outsized(norm, self.rate()):
            return False
        # In a young run a limit is wide, and the loss is asked long before it.
        return norm <= (self.limit() if known.count >= YOUNG else OVERRUN * known.norms.typical)

    def worth_keeping(self, step: int, statistics: GradientStatistics) -> bool:
        """Return whether the state before ``step`` should be copied."""
        trial = None if self.treatment.trial is None else len(self.treatment.trial.losses)
        # The one question of nearly every step; the others can wait until the answer is yes.
        if not self.snapshots.due(step, soon=trial is not None):
            return False
        if not any(remedy.uses_snapshots for remedy in self.remedies):
            return False
        return worth_keeping(
            self.snapshots, step, statistics, self.baseline, incident=self.incident is not None, trial=trial
        )

    def plan_snapshots(self, collectives: Collectives) -> str | None:
        """Have less kept where the host has too little memory for it; return what to warn of."""
        return self.snapshots.plan(self.parameters, self.trained.buffers(), self.optimizer, collectives)

    def take_snapshot(self, step: int) -> None:
        """Keep a copy of the state before ``step``."""
        self.snapshots.take(step, self.parameters, self.trained.buffers(), self.optimizer, self.memory())

    def capture(self) -> Snapshot:
        """Return a copy of the state of now."""
        state = self.parameters, self.trained.buffers(), self.optimizer, self.memory()
        return self.snapshots.capture(self.steps, *state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a copy of the state, and in expectations as well."""
        restore(snapshot, self.parameters, self.trained.buffers(), self.optimizer)
        self.load_memory(snapshot.extra)

    def go_back(self, *, look: bool) -> None:
        """Go back in expectations, once weights have gone back to the newest copy; ``look`` where layers are measured there."""
        # What is known of updates and rates does not go back with the weights.
        kept = self.baseline.outlasting()
        if self.snapshots.latest is not None:
            self.load_memory(self.snapshots.latest.extra)
        self.baseline.outlast(kept)
        self.treatment.go_back(look=look)

    def look_at_state(self, *, alone: bool) -> None:
        """Find out whether the optimizer's state was written to, and is to be examined before this step.

        Several processes need not agree on it, and must not part ways: it is asked only where this one is ``alone``.
        """
        self.tampered = alone and self.watch.written() and self.audit_interval.due(self.steps)

    def watch_closely(self) -> None:
        """Have the host judge each of the next few steps by itself."""
        self.watchful = self.steps + CLOSE

    def memory(self) -> dict[str, Any]:
        """Return what detectors know, for a snapshot: going back in weights goes back in expectations."""
        return {
            "baseline": self.baseline.state_dict(),
            "detectors": self.detectors.state_dict(),
            "rate": largest_rate(self.optimizer) * self.remedies.lr_factor,
            "number": self.number,
        }

    def load_memory(self, memory: dict[str, Any]) -> None:
        """Take back what :meth:`memory` returned; detectors that are new since then start afresh."""
        self.baseline.load_state_dict(memory["baseline"])
        self.detectors.load_state_dict(memory["detectors"])

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned, for a checkpoint."""
        return {
            "memory": self.memory(),
            "remedies": self.remedies.state_dict(),
            "policy": self.policy.state_dict(),
            "untouched": self.untouched,
            # A checkpoint holds one process's state, and its shards are of no use to the others.
            "snapshots": self.snapshots.state_dict() if not self.sharded else SnapshotStore().state_dict(),
            **self.treatment.state_dict(sharded=self.sharded),
            "batches": self.batches.state_dict(),
            "meter": self.accumulator.state_dict(),
            "incident": to_json(
                self.incident and dataclasses.replace(self.incident, trials=tuple(self.treatment.trials))
            ),
            "steps": self.steps,
            "watchful": self.watchful,
            "glances": [self.odd_loss_interval.last, self.odd_loss_interval.gap],
            "audits": [self.audit_interval.last, self.audit_interval.gap],
            "writes": -1 if self.watch.usual is None else self.watch.usual,
            "check_up": self.check_up,
            "last": plain_statistics(self.last),
            "losses": list(self.joint_loss.own),
            "shared": list(self.joint_loss.averaged),
            "noticed": self.notices.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; remedies that are new since then start afresh."""
        self.load_memory(state["memory"])
        self.remedies.load_state_dict(state["remedies"])
        self.policy.load_state_dict(state["policy"])
        self.untouched = bool(state["untouched"])
        self.snapshots.load_state_dict(state["snapshots"])
        self.batches.load_state_dict(state["batches"])
        self.accumulator.load_state_dict(state["meter"])
        self.incident = incident_from_json(state["incident"]) if state["incident"] else None
        self.treatment.load_state_dict(state, () if self.incident is None else self.incident.trials)
        if (trial := self.treatment.trial) is not None:
            trial.lowers_rate = Act.BACKOFF in self.remedies.done_by(trial.treatment)
        self.incident = self.incident and dataclasses.replace(self.incident, trials=())
        self.steps, self.watchful = int(state["steps"]), int(state["watchful"])
        self.odd_loss_interval = ExponentialInterval(*map(int, state["glances"]))
        self.audit_interval = ExponentialInterval(*map(int, state["audits"]))
        self.watch.usual = None if state["writes"] < 0 else int(state["writes"])
        self.check_up = bool(state["check_up"])
        self.last = statistics_from(state["last"])
        self.gate.drop()
        self.joint_loss.own = [float(v) for v in state["losses"]]
        self.joint_loss.averaged = [float(v) for v in state["shared"]]
        self.notices.load_state_dict(state["noticed"])

    def close(self) -> None:
        """Put the rates back and take all hooks off optimizer and module."""
        self.after_update()
        self.remedies.close()
        self._hook.remove()
