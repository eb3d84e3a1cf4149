"""All that the guard knows of one optimizer: its parameters, its memory, its open incident."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradguard.attribution.batch import BatchWitness
from lightning_gradguard.attribution.freshness import drawn
from lightning_gradguard.attribution.optimizer_state import StateWatch
from lightning_gradguard.attribution.probe import Signal
from lightning_gradguard.detectors import Detector
from lightning_gradguard.device_gate import DeviceGate
from lightning_gradguard.diagnostics.recorder import Notices
from lightning_gradguard.diagnostics.window import WindowAccumulator
from lightning_gradguard.errors import GuardError, named
from lightning_gradguard.history.baseline import LEAP, RECENT, YOUNG, Baseline
from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.layers.forward_order import arranged, first_uses, registered
from lightning_gradguard.layers.names import clean
from lightning_gradguard.policy import Policy, Trial
from lightning_gradguard.records import (
    GradientStatistics,
    Incident,
    TrialRecord,
    Verdict,
    incident_from_json,
    to_json,
    verdict_from_json,
)
from lightning_gradguard.remedies import Initialize, LearningRateBackoff, Remedy
from lightning_gradguard.remedies.backoff import LargestRate, largest_rate
from lightning_gradguard.snapshots.store import Snapshot, SnapshotStore, plain
from lightning_gradguard.snapshots.when import worth_keeping
from lightning_gradguard.statistics.joint_loss import JointLoss
from lightning_gradguard.statistics.norms import global_norm
from lightning_gradguard.statistics.update_ratio import build_up

T = TypeVar("T")

LIFE = 40
"""Accepted steps after which a run that does not move is asked for the first time whether its output depends on its input; then after
twice as many each time."""
CLOSE = 20
"""Steps that the host judges at once after an alarm that calls for more than the device can do."""
LOSSES = 32
"""The most losses that are looked at for one in whose graph the optimizer's parameters are."""


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
        self._isolate = isolate
        self.module = module
        self.optimizer = optimizer
        self._prototypes = detectors
        self.detectors = copy.deepcopy(list(detectors))
        self._own: tuple[list[Detector], dict[str, list[Detector]]] = ([], {})
        self.remedies = {remedy.name: remedy for remedy in copy.deepcopy(list(remedies))}
        # Made once a part; parts live as long as the track.
        self._blocks: dict[int, named] = {}
        # Most remedies act once and need not be asked at every step.
        self.lasting = [r for r in self.remedies.values() if _overrides(r, Remedy, "before_update", "after_update")]
        # Whether there may be something that has to be undone after the update.
        self._touched = False
        self.preparing = [r for r in self.remedies.values() if _overrides(r, Remedy, "before_forward")]
        self.policy = copy.deepcopy(policy)
        # The treatment on trial, and the state from before it.
        self.trial: Trial | None = None
        self.untreated: Snapshot | None = None
        # Levels of the loss before the trouble and in it, and whether something had been learned; how the incident's trials ended.
        self.levels: tuple[list[float], list[float], bool] | None = None
        self.trials: list[TrialRecord] = []
        # Losses of alarming steps since the last accepted one without.
        self.trouble: list[float] = []
        # Whether nobody had trained the module when it was met; whether its first weights are draws, once that was asked.
        self.untouched = False
        self._drawn: bool | None = None
        # Growth of the signal at the first step, where its layers were measured.
        self.growth: float | None = None
        # When to look whether the output still depends on the input; whether it was found not to.
        self.next_look = LIFE
        self.dead = False
        # Whether the layers are measured in the batch at hand, before anything is treated.
        self.looking: Verdict | None = None
        self.signal: Signal | None = None
        # Whether all treatments have failed, so that only first aid is left.
        self.resigned = False
        # Averages of the module's weights, kept by others, that go back with them.
        self.followers: tuple[nn.Module, ...] = ()
        # Whether the trouble at hand is that of a start.
        self.at_start = False
        self.looked = False
        self.snapshots = copy.deepcopy(snapshots)
        self.baseline = Baseline()
        self.batches = BatchWitness()
        self.accumulator = WindowAccumulator()
        self.incident: Incident | None = None
        self.last: GradientStatistics | None = None
        self.steps = 0
        self.gate = DeviceGate()
        # Steps before which the host judges each by itself.
        self.watchful = 0
        self._to_follow = LOSSES
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
        self.parameters: dict[str, nn.Parameter] = {}
        self._names: tuple[str, ...] = ()
        self.sharded = False
        self._groups: list[tuple[int, int]] = []
        self.device = "cpu"
        # In a plain loop others may clip before they step; in Lightning's the gradients come only later.
        self._hooks = (
            optimizer.register_step_pre_hook(lambda *_: self.gate.settle()),
            optimizer.register_step_post_hook(lambda *_: self.after_update()),
        )

    def refresh(self) -> None:
        """Look up the optimizer's parameters again if its groups have changed.

        Parameter groups may be added in mid-run (gradual unfreezing). The global norm is then that of another set of
        parameters, so what was learned of it is forgotten.
        """
        groups = [(id(g["params"]), len(g["params"])) for g in self.optimizer.param_groups]
        if groups == self._groups:
            return
        if self._groups:
            self.baseline = Baseline()
            self.detectors = copy.deepcopy(list(self._prototypes))
            self.snapshots.hurry(self.steps)
        self._groups = groups
        self.accumulator.order = self.accumulator.order or registered(self.module)
        names = {id(p): clean(name) for name, p in self.module.named_parameters()}
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters = {names.get(id(p), f"parameter_{i}"): p for i, p in enumerate(held)}
        self._names = tuple(self.parameters)
        self.sharded = any(hasattr(p, "to_local") for p in held)
        self.device = held[0].device.type if held else "cpu"

    def asks_for_life(self) -> bool:
        """Return whether the layers are to be measured in the next batch, since the loss stands still; asked after each accepted step."""
        if self.baseline.count < self.next_look:
            return False
        self.next_look *= 2
        still = self.baseline.flat
        self.snapshots.pinned = self.snapshots.pinned and (still or self.baseline.count < 2 * LIFE)
        return still

    def learn_anew(self) -> None:
        """Forget what was learned of another regime of data, loss or task; the next steps tell what is usual now."""
        prior = self.baseline.rate, self.baseline.looked
        self.baseline, self.batches = Baseline(), BatchWitness()
        self.baseline.rate, self.baseline.looked = prior
        self.detectors = copy.deepcopy(list(self._prototypes))
        self.snapshots.hurry(self.steps)
        self.untouched = False

    def follow(self, loss: Tensor) -> None:
        """Learn the forward order of the layers from the graph of a loss, once in a session."""
        # FSDP2 computes with parameters of its own, of which only some can be told.
        if not self._to_follow or self.sharded:
            return
        self._to_follow -= 1
        with suppress(Exception):  # a node of a kind of its own; the order of registration will do
            uses = first_uses(loss)
            # The loss may be another optimizer's.
            if any(id(p) in uses for p in self.parameters.values()):
                self.accumulator.order, self._to_follow = arranged(self.module, uses), 0

    def isolating(self, part: Detector | Remedy) -> named:
        """Return a ``with`` block that names ``part`` if it fails, and leaves it out from then on where that is wanted."""
        found = self._blocks.get(id(part))
        if found is None:
            what = f"detector {part.name!r}" if isinstance(part, Detector) else f"remedy {part.name!r}"
            found = named(what, None if self._isolate is None else partial(self._leave_out, part))
            self._blocks[id(part)] = found
        return found

    def _leave_out(self, part: Detector | Remedy, error: GuardError) -> None:
        assert self._isolate is not None
        if isinstance(part, Detector):
            self.detectors = [d for d in self.detectors if d is not part]
            self._prototypes = [d for d in self._prototypes if d.name != part.name]
        elif self.remedies.pop(part.name, None) is not None:
            self.lasting = [r for r in self.lasting if r is not part]
            self.preparing = [r for r in self.preparing if r is not part]
            with suppress(Exception):
                part.after_update()
        self._isolate(error)

    def gradients(self) -> tuple[tuple[str, ...], list[Tensor]]:
        """Return the names of the parameters that have a gradient, and the gradients."""
        # Asked at every step, and .grad is slow: once a parameter where all have one.
        grads = [grad for p in self.parameters.values() if (grad := p.grad) is not None]
        if len(grads) == len(self._names):
            return self._names, grads
        return tuple(name for name, p in self.parameters.items() if p.grad is not None), grads

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers of the layers this optimizer trains; the first track has those of layers without parameters too."""
        mine = {id(p) for p in self.parameters.values()}
        found = {}
        for name, layer in self.module.named_modules():
            if not layer._buffers:
                continue
            own = list(layer.parameters(recurse=False))
            if any(id(p) in mine for p in own) or (not own and self.index == 0):
                for key, buffer in layer.named_buffers(name, recurse=False):
                    if key.rpartition(".")[2] not in layer._non_persistent_buffers_set:
                        found[clean(key)] = buffer
        return found | self.averages

    @property
    def averages(self) -> dict[str, Tensor]:
        """Averages of the weights that are kept beside the module (EMA, SWA), by name; the first track takes them back with the weights."""
        if self.index:
            return {}
        return {
            f"average{i}.{name}": value
            for i, average in enumerate(self.followers)
            for name, value in (*average.named_parameters(), *average.named_buffers())
        }

    def limit(self) -> float:
        """Return the largest global norm that may pass."""
        limits = [math.inf]
        for detector in self._with_own("limit"):
            with self.isolating(detector):
                limit = expected(detector.limit(self.baseline), (int, float))
                # A comparison with NaN is never true, and would let everything pass.
                limits.append(limit if limit == limit else 0.0)
        return min(limits)

    def target(self, limit: float) -> float:
        """Return the norm to clip down to: the upper edge of what is usual, since a spike's length means nothing."""
        if self.baseline.count == 0:
            return limit
        return min(limit, self.baseline.typical * math.exp(max(2.0 * self.baseline.spread, math.log(2.0))))

    @property
    def searches(self) -> bool:
        """Whether the optimizer tries points along a line before it takes one, so that what it finds there is its own business."""
        return isinstance(self.optimizer, torch.optim.LBFGS)

    def judge(self, statistics: GradientStatistics) -> list[Verdict]:
        """Ask every detector until one raises an alarm; the alarm, if any, comes last."""
        if self.searches and statistics.finite:
            return []
        verdicts = []
        # One that fails is left out of a new list.
        for detector in self.detectors:
            # Not a with block: seven are asked at every step, and a try costs nothing until it fails.
            try:
                verdict = detector.judge(statistics, self.baseline)
                if verdict is None:
                    continue
                expected(verdict, Verdict)
            except Exception as error:
                self.failed(detector, error)
                continue
            verdicts.append(verdict)
            if verdict.alarm and not verdict.examine:
                break
        return verdicts

    def accept(self, statistics: GradientStatistics, limit: float) -> None:
        """Learn from a step that was let through, whose norm was clipped to ``limit`` if above it."""
        self.baseline.accept(min(statistics.norm, limit), statistics.loss)
        if statistics.update_ratio is not None and statistics.norm <= limit:
            self.baseline.accept_update(statistics.update_ratio * build_up(self.optimizer))
        if statistics.rate is not None:
            self.baseline.accept_rate(statistics.rate)
            if statistics.rate > self.baseline.rate:
                # Asked again, since a remedy may have lowered it for this very update.
                self.baseline.rate = max(self.baseline.rate, self.rate() or 0.0)
        for detector in self._with_own("accept"):
            try:
                detector.accept(statistics, self.baseline)
            except Exception as error:
                self.failed(detector, error)

    def _with_own(self, method: str) -> list[Detector]:
        """Return the detectors that have such a method of their own; found once, until detectors are changed."""
        if self._own[0] is not self.detectors:
            self._own = self.detectors, {}
        found = self._own[1].get(method)
        if found is None:
            found = self._own[1][method] = [d for d in self.detectors if _overrides(d, Detector, method)]
        return found

    def failed(self, part: Detector | Remedy, error: Exception) -> None:
        """Name a part that failed outside a block of :meth:`isolating`, and do with it the same."""
        with self.isolating(part):
            raise error

    def reject(self, statistics: GradientStatistics) -> None:
        """Tell all who learn that a step was skipped; its loss must not count in the mean over processes."""
        self.joint_loss.drop()
        self.watch.skip()
        for detector in list(self.detectors):
            with self.isolating(detector):
                detector.reject(statistics)

    def before_forward(self, batch: Any) -> bool:
        """Let the remedies that prepare batches change one in place; return whether one did."""
        for remedy in list(self.preparing):
            self._touched = True
            with self.isolating(remedy):
                if remedy.before_forward(batch):
                    return True
        return False

    def begin(self) -> None:
        """Begin a step: from here on anything may be changed for its update, until :meth:`after_update` undoes it."""
        # An update that never happened (a scaler's skip, an exception) left the rates as they were for it.
        self.after_update()
        self._touched = True

    def after_update(self) -> None:
        """Let lasting remedies undo what they changed for the update, unless that is done already."""
        if not self._touched:
            return  # As in two of three calls a step: each way out of an update makes sure by itself.
        self.gate.after_update()
        failed: tuple[Remedy, Exception] | None = None
        for remedy in list(self.lasting):
            try:
                remedy.after_update()
            except Exception as error:
                # The others must still undo what they changed; and who failed once is not asked again.
                self.lasting.remove(remedy)
                failed = failed or (remedy, error)
        # Not before: an interrupt comes when it likes, and who puts everything back after it must find the rest.
        self._touched = False
        if failed is not None:
            self.failed(*failed)

    @property
    def lr_factor(self) -> float:
        """Factor on the learning rate now."""
        return float(getattr(self.remedies.get("backoff"), "factor", 1.0))

    def rate(self) -> float:
        """Return the rate that the next update is made with."""
        rate, backoff = self._rate.read(), self.remedies.get("backoff")
        if isinstance(backoff, LearningRateBackoff) and not backoff.in_effect:
            return rate * backoff.bracket.share(rate)
        return rate

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
        return norm <= (self.limit() if known.count >= YOUNG else LEAP * known.typical)

    def worth_keeping(self, step: int, statistics: GradientStatistics) -> bool:
        """Return whether the state before ``step`` should be copied."""
        trial = None if self.trial is None else len(self.trial.losses)
        # The one question of nearly every step; the others can wait until the answer is yes.
        if not self.snapshots.due(step, soon=trial is not None):
            return False
        if not any(remedy.uses_snapshots for remedy in self.remedies.values()):
            return False
        return worth_keeping(
            self.snapshots, step, statistics, self.baseline, incident=self.incident is not None, trial=trial
        )

    def take_snapshot(self, step: int) -> None:
        """Keep a copy of the state before ``step``."""
        self.snapshots.take(step, self.parameters, self.buffers, self.optimizer, self.memory())

    def capture(self) -> Snapshot:
        """Return a copy of the state of now."""
        return self.snapshots.capture(self.steps, self.parameters, self.buffers, self.optimizer, self.memory())

    def watch_closely(self) -> None:
        """Have the host judge each of the next few steps by itself."""
        self.watchful = self.steps + CLOSE

    def memory(self) -> dict[str, Any]:
        """Return what detectors know, for a snapshot: going back in weights goes back in expectations."""
        return {
            "baseline": self.baseline.state_dict(),
            "detectors": self._states(self.detectors),
            "rate": largest_rate(self.optimizer) * self.lr_factor,
        }

    def _states(self, parts: Sequence[Detector | Remedy]) -> dict[str, Any]:
        states = {}
        for part in list(parts):
            with self.isolating(part):
                states[part.name] = expected(part.state_dict(), dict)
        return states

    def load_memory(self, memory: dict[str, Any]) -> None:
        """Take back what :meth:`memory` returned; detectors that are new since then start afresh."""
        self.baseline.load_state_dict(memory["baseline"])
        for detector in list(self.detectors):
            if detector.name in memory["detectors"]:
                with self.isolating(detector):
                    detector.load_state_dict(memory["detectors"][detector.name])

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned, for a checkpoint."""
        return {
            "memory": self.memory(),
            "remedies": self._states(list(self.remedies.values())),
            "policy": self.policy.state_dict(),
            "trial": [self.trial.state_dict()] if self.trial is not None else [],
            "trouble": list(self.trouble),
            "untouched": self.untouched,
            "next_look": self.next_look,
            # A checkpoint holds one process's state, and its shards are of no use to the others.
            "snapshots": self.snapshots.state_dict() if not self.sharded else SnapshotStore().state_dict(),
            "treating": self._treating(),
            "batches": self.batches.state_dict(),
            "meter": self.accumulator.state_dict(),
            "incident": to_json(self.incident and dataclasses.replace(self.incident, trials=tuple(self.trials))),
            "steps": self.steps,
            "watchful": self.watchful,
            "glances": [self.odd_loss_interval.last, self.odd_loss_interval.gap],
            "audits": [self.audit_interval.last, self.audit_interval.gap],
            "writes": -1 if self.watch.usual is None else self.watch.usual,
            "check_up": self.check_up,
            "last": _plain(self.last),
            "losses": list(self.joint_loss.own),
            "shared": list(self.joint_loss.averaged),
            "noticed": self.notices.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; remedies that are new since then start afresh."""
        self.load_memory(state["memory"])
        for name, remedy in list(self.remedies.items()):
            if name in state["remedies"]:
                with self.isolating(remedy):
                    remedy.load_state_dict(state["remedies"][name])
        self.policy.load_state_dict(state["policy"])
        self.trial = next(map(Trial.from_state, state["trial"]), None)
        self._load_treating(state["treating"])
        self.next_look = int(state["next_look"])
        self.trouble, self.untouched = [float(v) for v in state["trouble"]], bool(state["untouched"])
        self.snapshots.load_state_dict(state["snapshots"])
        self.batches.load_state_dict(state["batches"])
        self.accumulator.load_state_dict(state["meter"])
        self.incident = incident_from_json(state["incident"]) if state["incident"] else None
        self.trials = list(self.incident.trials) if self.incident is not None else []
        self.incident = self.incident and dataclasses.replace(self.incident, trials=())
        self.steps, self.watchful = int(state["steps"]), int(state["watchful"])
        self.odd_loss_interval = ExponentialInterval(*map(int, state["glances"]))
        self.audit_interval = ExponentialInterval(*map(int, state["audits"]))
        self.watch.usual = None if state["writes"] < 0 else int(state["writes"])
        self.check_up = bool(state["check_up"])
        self.last = _statistics(state["last"])
        self.gate.drop()
        self.joint_loss.own = [float(v) for v in state["losses"]]
        self.joint_loss.averaged = [float(v) for v in state["shared"]]
        self.notices.load_state_dict(state["noticed"])

    def _treating(self) -> dict[str, Any]:
        """Return what a treatment under way goes by, in the same form where there is none."""
        before, trouble, learned = self.levels or ([], [], False)
        signals = [] if self.signal is None else [self.signal]
        return {
            "untreated": [plain(self.untreated)] if self.untreated is not None and not self.sharded else [],
            "measured": self.levels is not None,
            "before": list(before),
            "trouble": list(trouble),
            "learned": learned,
            "growth": [self.growth] if self.growth is not None else [],
            "signal": [v for s in signals for v in (s.source, s.growth, s.variation) if v is not None],
            "looking": [dataclasses.asdict(self.looking)] if self.looking is not None else [],
            "looked": self.looked,
            "dead": self.dead,
            "resigned": self.resigned,
            "at_start": self.at_start,
        }

    def _load_treating(self, state: dict[str, Any]) -> None:
        self.untreated = next((Snapshot(**found) for found in state["untreated"]), None)
        levels = [float(v) for v in state["before"]], [float(v) for v in state["trouble"]], bool(state["learned"])
        self.levels = levels if state["measured"] else None
        self.growth = next(map(float, state["growth"]), None)
        source, growth, variation, *_ = [*map(float, state["signal"]), None, None, None]
        self.signal = Signal(source, growth, variation) if source is not None and growth is not None else None
        self.looking = next((verdict_from_json(to_json(found)) for found in state["looking"]), None)
        self.looked, self.dead = bool(state["looked"]), bool(state["dead"])
        self.resigned, self.at_start = bool(state["resigned"]), bool(state["at_start"])

    def resume(self) -> None:
        """Let remedies that had changed the module itself do so again, once their state is loaded."""
        for remedy in list(self.remedies.values()):
            with self.isolating(remedy):
                remedy.resume(self.module)

    def close(self) -> None:
        """Put the rates back and take all hooks off optimizer and module."""
        self.after_update()
        if isinstance(initialize := self.remedies.get("initialize"), Initialize):
            initialize.close()
        for hook in self._hooks:
            hook.remove()


def _plain(statistics: GradientStatistics | None) -> dict[str, Any]:
    """Return what the next step is compared with, in the same form where there is nothing yet."""
    seen = [] if statistics is None else [statistics]
    return {
        "step": [s.step for s in seen],
        "names": [name for s in seen for name in s.names],
        "norms": [norm for s in seen for norm in s.norms.tolist()],
        "loss": [s.loss for s in seen if s.loss is not None],
        "rate": [s.rate for s in seen if s.rate is not None],
    }


def _statistics(plain: dict[str, Any]) -> GradientStatistics | None:
    if not plain["step"]:
        return None
    norms, names = np.array(plain["norms"], dtype=np.float64), tuple(map(str, plain["names"]))
    loss, rate = (next(map(float, plain[key]), None) for key in ("loss", "rate"))
    return GradientStatistics(int(plain["step"][0]), names, norms, global_norm(norms), loss=loss, rate=rate)


def expected(value: T, kind: type | tuple[type, ...]) -> T:
    """Return what a part gave back, if it is of the kind that its contract names; raise TypeError otherwise."""
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"it returned {value!r}, which is no {wanted}")
    return value


def _overrides(part: object, base: type, *methods: str) -> bool:
    """Tell whether a part has a method of its own where its base does nothing."""
    return any(getattr(type(part), method) is not getattr(base, method) for method in methods)
