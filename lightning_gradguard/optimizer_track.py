"""All that the guard knows of one optimizer: its parameters, its memory, its open incident.

One idea: each part that is kept for an optimizer has a room of its own, and here they are put together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.attribution.batch import BatchWitness
from lightning_gradguard.attribution.freshness import drawn, untouched
from lightning_gradguard.attribution.optimizer_state import StateWatch
from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.attribution.two_kinds import TwoKinds
from lightning_gradguard.detectors.detector_set import DetectorSet
from lightning_gradguard.detectors.loss_spike import LossSpike
from lightning_gradguard.device_gate import DeviceGate
from lightning_gradguard.diagnostics.notices import Notices
from lightning_gradguard.diagnostics.window import WindowAccumulator
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.layers.forward_order import ForwardOrder
from lightning_gradguard.layers.trained import Trained
from lightning_gradguard.learning_rate import LargestRate, largest_rate
from lightning_gradguard.optimizer_wrappers import StepHook
from lightning_gradguard.parts import Parts
from lightning_gradguard.records import GradientStatistics, Incident, Suspect, Verdict
from lightning_gradguard.remedies.remedy_set import RemedySet
from lightning_gradguard.stale_gradients import StaleGradients
from lightning_gradguard.statistics.clipping_seen import ClippingSeen
from lightning_gradguard.statistics.joint_loss import JointLoss
from lightning_gradguard.treatment import Treatment
from lightning_gradguard.witnesses.stand import WitnessStand

WATCHED_STEPS = 20
"""Steps that the host judges at once after an alarm that calls for more than the device can do."""


class OptimizerTrack:
    """Remember one optimizer. Several optimizers (a GAN) have a track each: one's trouble is not the other's.

    Args:
        index: Position of the optimizer.
        module: The root module.
        optimizer: The optimizer.
        parts: Prototypes; the track works on copies.
    """

    def __init__(self, index: int, module: nn.Module, optimizer: torch.optim.Optimizer, parts: Parts) -> None:
        self.index, self.module, self.optimizer = index, module, optimizer
        self.detectors = DetectorSet(parts.detectors, parts.isolate)
        self.remedies = RemedySet(parts.remedies, parts.isolate)
        self.policy = copy.deepcopy(parts.policy)
        self.treatment = Treatment()
        # Whether nobody had trained the module when it was met; whether its first weights are draws, once that was
        # asked.
        self.untouched = False
        self._drawn: bool | None = None
        self._without_copies = False
        # What was found at the first step, where no copy of it is kept.
        self.at_start: tuple[tuple[Suspect, ...], Signal | None] | None = None
        self.trained = Trained(index, module, optimizer)
        self.order = ForwardOrder()
        self.snapshots = copy.deepcopy(parts.snapshots)
        self.baseline = Baseline()
        self.batches, self.two_kinds = BatchWitness(), TwoKinds()
        self.stale = StaleGradients()
        self.accumulator = WindowAccumulator()
        self.witnesses = WitnessStand(parts.witnesses)
        self.incident: Incident | None = None
        self.last: GradientStatistics | None = None
        self.steps = 0
        self.number = 0  # the step at hand as the record counts it: the trainer's, where that is known
        self.gate = DeviceGate()
        self.watchful = 0  # steps before which the host judges each by itself
        self.joint_loss = JointLoss()
        self.odd_loss_interval = ExponentialInterval()
        self._rate = LargestRate(optimizer)
        self.watch = StateWatch(optimizer)
        self.check_up = False  # whether layers are to be looked at in the next step that the host judges
        self.notices = Notices()
        self.parameters: dict[str, nn.Parameter] = {}  # as of the last look at the optimizer's groups
        self.clipping_seen = ClippingSeen()
        self.sharded, self.device = False, "cpu"
        # In a plain loop others may clip between judgement and step, so the gate settles right before the update.
        self._hook = StepHook(optimizer, self._stepped, before=self.gate.settle)

    def begin_run(self, *, resumed: bool, followers: tuple[nn.Module, ...]) -> None:
        """Look the optimizer's parameters up, and whether anybody has trained them.

        Args:
            resumed: Whether the weights come from a checkpoint.
            followers: Averages of the weights, kept elsewhere, that go back with them.
        """
        self.refresh()
        self.trained.followers = followers
        self.untouched, self.snapshots.pinned = not resumed and untouched(self.module, self.optimizer), True

    def refresh(self) -> None:
        """Look up the optimizer's parameters again if its groups have changed."""
        if self.trained.changed():
            self.take_over()

    def take_over(self) -> None:
        """Take over the parameters that :attr:`trained` has looked up.

        Parameter groups may be added in mid-run (gradual unfreezing). The global norm is then that of another set of
        parameters, so what was learned of it is forgotten.
        """
        if self.trained.regrouped:
            self.baseline = Baseline()
            self.detectors.forget()
            self.snapshots.hurry(self.steps)
        self.order.register(self.module)
        self.accumulator.order = self.order.layers
        self.parameters = self.trained.parameters
        self.sharded, self.device = self.trained.sharded, self.trained.device

    def follow(self, loss: Tensor) -> None:
        """Learn the forward order of the layers from the graph of a loss, once in a session."""
        # FSDP2 computes with parameters of its own, of which only some can be told.
        if not self.sharded and self.order.follow(loss, self.module, self.parameters.values()):
            self.accumulator.order = self.order.layers

    def limit(self) -> float:
        """Return the largest global norm that may pass."""
        return self.detectors.limit(self.baseline)

    def target(self, limit: float) -> float:
        """Return the norm to clip down to: the upper edge of what is usual, since a spike's size says nothing."""
        if self.baseline.count == 0:
            return limit
        return min(limit, self.baseline.norms.typical * math.exp(max(2.0 * self.baseline.norms.spread, math.log(2.0))))

    def begin(self) -> None:
        """Begin a step: from here on anything may be changed for its update, until :meth:`after_update` undoes it."""
        # An update that never happened (a scaler's skip, an exception) left the rates as they were for it.
        self.after_update()
        self.remedies.touched = True

    def _stepped(self) -> None:
        self.stale.after_update()
        self.after_update()

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

    def send_rate(self) -> None:
        """Send what a device was told of the rate on its way: it is known one step late, and not waited for."""
        self._rate.send()

    def rates(self) -> tuple[float, float, float]:
        """Return the rate in use, the largest known good and the smallest known bad; NaN where that is not known."""
        rate = self.rate()
        return math.nan if rate is None else rate, *self.remedies.known_rates()

    @property
    def climbs(self) -> bool:
        """Whether a rate has lost the run, and a lower one is on its way back to the schedule."""
        return math.isfinite(self.remedies.known_rates()[1])

    @property
    def fresh(self) -> bool:
        """Whether the run began with weights that nobody had trained, and its first step can be gone back to."""
        first = self.snapshots.first
        if not self.untouched or (first is None and not self._without_copies):
            return False
        if self._drawn is None and first is not None:
            self._drawn = drawn(first.parameters.values())
        return bool(self._drawn)

    def begins_from(self, weights: Iterable[Tensor]) -> None:
        """Note whether the weights of the first step are draws, where no copy of them is kept."""
        self._without_copies, self._drawn = True, drawn(weights)

    def alone(self, verdict: Verdict) -> bool:
        """Return whether a loss leaps alone, as of a hard sample; what is damaged makes a hard one of each."""
        return verdict.detector == LossSpike.name and not self.baseline.losses.latest(1) > [verdict.limit]

    def watch_closely(self) -> None:
        """Have the host judge each of the next few steps by itself."""
        self.watchful = self.steps + WATCHED_STEPS

    def memory(self) -> dict[str, Any]:
        """Return what detectors know, for a snapshot: a rollback takes back what was learned since, too."""
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

    def close(self) -> None:
        """Put the rates back and take all hooks off optimizer and module."""
        self.after_update()
        self.remedies.close()
        self.witnesses.close()
        self._hook.remove()
