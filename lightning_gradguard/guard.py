"""The flow itself, in pure torch: gradients -> statistics -> verdict -> decision -> remedy -> record.

:class:`Guard` serves Lightning (through :class:`lightning_gradguard.GradGuard`), Fabric and plain loops alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradguard import checks, late
from lightning_gradguard.attribution.probe import LayerReading
from lightning_gradguard.baseline import YOUNG
from lightning_gradguard.detectors import (
    ColdStart,
    Detector,
    Divergence,
    Drift,
    LossLeap,
    NonFinite,
    RateLeap,
    RateRise,
    Spike,
    Stagnation,
    Vanishing,
)
from lightning_gradguard.diagnostics.sink import Sink
from lightning_gradguard.errors import GuardError, TrainingDiverged
from lightning_gradguard.first_look import first_look
from lightning_gradguard.investigation import Asked, Investigation, suspects
from lightning_gradguard.keeping import keep
from lightning_gradguard.lane import Lane, expected
from lightning_gradguard.measuring import LOSS_EVERY, Team, measure, scale_of
from lightning_gradguard.policy import Policy
from lightning_gradguard.recorder import Recorder
from lightning_gradguard.records import (
    Action,
    Blame,
    Decision,
    GradientStatistics,
    Incident,
    Outcome,
    Verdict,
    incident_from_json,
    to_json,
)
from lightning_gradguard.rehearsal import VERSION, rehearse
from lightning_gradguard.remedies import Clip, LearningRateBackoff, Reinitialize, Remedy, Rollback, Scene, Skip
from lightning_gradguard.running import RunningStatistics
from lightning_gradguard.snapshots import SnapshotStore

SUSPICIOUS = 4.0
"""RMS of a weight over what its fan calls for, above which the first step is measured layer by layer."""
EXAMINE_EVERY = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the guard did with one step.

    Args:
        statistics: The gradients as they arrived; on a GPU, where nothing is amiss, those of the step before.
        verdict: What was wrong, or None.
        decision: What was decided, or None.
        outcomes: What the remedies did.
        held: True if the update will touch nothing.
        stop: True if the budget is spent and the run should end.
    """

    statistics: GradientStatistics
    verdict: Verdict | None = None
    decision: Decision | None = None
    outcomes: tuple[Outcome, ...] = ()
    held: bool = False
    stop: bool = False


def default_detectors() -> list[Detector]:
    """Return one detector for each form of trouble, in the order in which they are asked."""
    return [
        ColdStart(),
        NonFinite(),
        Spike(),
        RateLeap(),
        RateRise(),
        Divergence(),
        Stagnation(),
        LossLeap(),
        Drift(),
        Vanishing(),
    ]


def default_remedies() -> list[Remedy]:
    """Return the remedies of the default ladder."""
    return [Clip(), Skip(), LearningRateBackoff(), Rollback(), Reinitialize()]


class Guard:
    """Watch the gradients of a module's optimizers, and act before a bad update is applied.

    Call :meth:`before_step` between ``backward()`` and ``optimizer.step()``; nothing else is needed. With a GradScaler,
    call ``scaler.unscale_(optimizer)`` first (unless the optimizer is fused) and pass the scaler.

    Args:
        module: The module that is trained; it may be named later, with :meth:`bind`.
        mode: ``"guard"`` acts; ``"watch"`` changes nothing and only reports.
        detectors: What to look for; by default one detector for each form of trouble.
        remedies: What may be done; leave one out to switch it off. Without :class:`Skip` (or without a detector of
            non-finite gradients) a NaN reaches the weights, of which a warning tells.
        policy: The ladder, its cool-downs and budget.
        snapshots: How often the state is copied to host memory, and how many copies are kept.
        sinks: Where the record goes.
        log_every: Optimizer steps between two windows sent to the sinks.
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
        >>> guard.before_step(optimizer, loss=loss).held
        False
        >>> optimizer.step()
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        mode: Literal["guard", "watch"] = "guard",
        detectors: Sequence[Detector] | None = None,
        remedies: Sequence[Remedy] | None = None,
        policy: Policy | None = None,
        snapshots: SnapshotStore | None = None,
        sinks: Sequence[Sink] = (),
        log_every: int = 50,
        on_exhausted: Literal["stop", "raise", "continue"] = "stop",
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        self.mode = checks.choice("mode", mode, ("guard", "watch"))
        self.on_exhausted = checks.choice("on_exhausted", on_exhausted, ("stop", "raise", "continue"))
        self.on_error = checks.choice("on_error", on_error, ("raise", "warn"))
        self._recorder = Recorder(sinks, checks.whole("log_every", log_every, least=1))
        self._detectors = checks.instances(
            "detectors", default_detectors() if detectors is None else detectors, Detector
        )
        self._remedies = checks.instances("remedies", default_remedies() if remedies is None else remedies, Remedy)
        self._policy = checks.instance("policy", Policy() if policy is None else policy, Policy)
        self._snapshots = checks.instance(
            "snapshots", SnapshotStore() if snapshots is None else snapshots, SnapshotStore
        )
        self._lanes: dict[int, Lane] = {}
        self._waiting: dict[str, Any] = {}
        self._investigation = Investigation()
        self._running: RunningStatistics | None = None
        self._team = Team()
        self._module: nn.Module | None = None
        if module is not None:
            self.bind(module)

    def share(self, team: Team | None = None) -> None:
        """Set the collectives of several processes; without an argument those of one process."""
        self._team = team or Team()

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self._team.size

    @property
    def module(self) -> nn.Module:
        """The module that is guarded."""
        if self._module is None:
            raise GuardError("the guard has no module yet: name it in Guard(module) or guard.bind(module)")
        return self._module

    def bind(self, module: nn.Module) -> None:
        """Guard this module; what was learned of another one is forgotten.

        Raises:
            ValueError: A remedy names layers that the module does not have.
        """
        for remedy in self._remedies:
            try:
                remedy.check(module)
            except ValueError:
                raise
            except Exception as error:
                raise GuardError(f"remedy {remedy.name!r} failed: {error!r}") from error
        if self._module is not None and self._module is not module:
            self._waiting, self._recorder.incidents = {}, []
            self._investigation.forget()
        self._module = module

    @property
    def sinks(self) -> list[Sink]:
        """Where the record goes; a sink may be added at any time."""
        return self._recorder.sinks

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents of the run, oldest first, the open one included."""
        return tuple(self._recorder.incidents)

    def attach(self, optimizer: torch.optim.Optimizer) -> Lane:
        """Begin to guard an optimizer; :meth:`before_step` does so by itself at its first call.

        Attach before the first forward pass, so that a first batch that is corrupt leaves no trace in BatchNorm either.
        """
        if self._running is None:
            self._running = RunningStatistics(self.module)
        self._investigation.arm_again(self.module)
        lane = self._lanes.get(id(optimizer))
        if lane is None:
            index = len(self._lanes)
            lane = Lane(
                index,
                self.module,
                optimizer,
                detectors=self._detectors,
                remedies=self._remedies,
                policy=self._policy,
                snapshots=self._snapshots,
                isolate=self._isolate if self.on_error == "warn" else None,
            )
            self._lanes[id(optimizer)] = lane
            lane.refresh()
            if lane.sharded and any(remedy.name == "reinitialize" for remedy in self._remedies):
                self._recorder.tell("notice", 0, "the parameters are sharded: layers are blamed but not re-initialised")
            if str(index) in self._waiting:
                lane.load_state_dict(self._waiting.pop(str(index)))
                lane.resume()
            elif first_look(self.module, lane.parameters, optimizer)[2] > SUSPICIOUS:
                # Measured at once, a bad start is mended one batch earlier.
                self._investigation.arm(lane, self.module, backward=False)
        return lane

    def augment(self, batch: Any) -> Any:
        """Augment a batch in place, and return it, if an incident has lately made :class:`Augment` do so.

        Call it before the forward pass of a loop of your own; the callback does. :meth:`before_step` puts the batch back.
        """
        # A second one, of another optimizer, would put back what the first has made.
        any(lane.before_forward(batch) for lane in self._lanes.values())
        return batch

    def follow(self, loss: Tensor) -> None:
        """Learn the order in which the heatmap lists layers from the graph of a loss: once, as it is being computed.

        Only needed where :meth:`before_step` is given a loss without its graph, or none; the callback calls it.
        """
        for lane in self._lanes.values():
            lane.follow(loss)

    def before_step(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Tensor | float | None = None,
        batch: Any = None,
        batch_index: int | None = None,
        step: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> StepReport:
        """Judge the gradients and act on them, before ``optimizer.step()``.

        Args:
            optimizer: The optimizer about to step; only its own parameters are looked at.
            loss: The loss of the step, as a second witness.
            batch: The batch, as a suspect.
            batch_index: Its number, for the record.
            step: Number of this step for the record; by default the guard counts.
            scaler: The GradScaler that owns this step.

        Raises:
            GuardError: A detector or remedy failed and ``on_error="raise"``.
            TrainingDiverged: The budget is spent and ``on_exhausted="raise"``.
        """
        lane = self.attach(optimizer)
        # An update that never happened (a scaler's skip, an exception) left the rates as they were for it.
        lane.after_update()
        try:
            self._catch_up(lane)
            lane.refresh()
            if isinstance(loss, Tensor) and loss.grad_fn is not None:
                lane.follow(loss)
            return self._leave_to_device(lane, loss, batch, batch_index, step, scaler) or self._flow(
                lane, self._scene(lane, loss, step, scaler), batch, batch_index
            )
        except Exception as error:
            self._never_worse(lane, error)
        return StepReport(GradientStatistics(lane.steps if step is None else step, (), np.zeros(0), math.nan))

    # -- on an accelerator: judged there, and learned of one step later ------------------------------------------------

    def _leave_to_device(
        self,
        lane: Lane,
        loss: Tensor | float | None,
        batch: Any,
        batch_index: int | None,
        step: int | None,
        scaler: Any,
    ) -> StepReport | None:
        """Let the device judge a step in whose run nothing is amiss; return None where the host must."""
        if lane.device not in late.DEVICES:
            return None
        act = self.mode == "guard"
        found = late.ready(lane, act=act, scaler=scaler, awaited=self._investigation.awaits(lane))
        if found is None or lane.last is None:
            return None
        names, grads = found
        number = lane.steps if step is None else step
        self._recorder.show(lane, number, names, grads, 1.0)
        passed = late.launch(lane, names, grads, act=act, step=number, loss=loss, batch=batch, batch_index=batch_index)
        if act:
            scene = self._scene_of(lane, lane.last)
            scene.running.accept(passed=passed)
            self._update(lane, scene)
        return StepReport(lane.last)

    def _catch_up(self, lane: Lane) -> None:
        """Learn what the device found and did at the last step, if it was left to it."""
        found = None if lane.flight is None else late.collect(lane, self._team)
        if found is None:
            return
        statistics, alarm = found.statistics, None
        lane.steps += 1
        for verdict in lane.judge(statistics):
            if not verdict.alarm:
                self._recorder.notice(lane, statistics.step, verdict)
            elif verdict.form in ("sudden", "non-finite") and not verdict.examine:
                alarm = verdict
            elif verdict.form != "sudden" or found.accused is not None or lane.glances.due(lane.steps):
                # What asks for more than first aid is asked again, of a step that the host has in hand.
                lane.watchful = lane.steps + late.CLOSE
        if alarm is not None:
            self._first_aid(lane, found, alarm)
        elif statistics.finite:
            lane.policy.rest(statistics.step)
            lane.accept(statistics, math.inf)
        self._recorder.meter(lane, statistics, found.coefficient, alarm=alarm is not None)

    def _catch_up_alone(self) -> None:
        """Do so for all optimizers, where no other process need take part; with several, :meth:`settle` does."""
        if self._team.size == 1:
            for lane in self._lanes.values():
                self._catch_up(lane)

    def _first_aid(self, lane: Lane, found: late.Late, verdict: Verdict) -> None:
        """Record what the device has done about a bad step; from here on the host judges each at once."""
        statistics, limit = found.statistics, lane.limit()
        named = suspects(lane, self.module, self._team, statistics, (), found.accused)
        # A damaged layer is mended by the host, at the step that it has in hand.
        batch = [s for s in named if s.layer == "batch"]
        decision = lane.policy.decide(verdict, statistics, blame=batch, baseline=lane.baseline, can=set(lane.remedies))
        outcomes = (found.outcome,) if self.mode == "guard" and found.coefficient < 1.0 else ()
        if outcomes:
            decision = dataclasses.replace(decision, remedies=(found.outcome.remedy,))
        if outcomes and found.coefficient == 0.0:
            lane.reject(statistics)
        elif statistics.finite:
            lane.accept(statistics, limit)
        self._record(lane, Action(statistics.step, verdict, decision, outcomes), named, found.batch_index)

    # -- the flow ------------------------------------------------------------------------------------------------------

    def _flow(self, lane: Lane, scene: Scene, batch: Any, batch_index: int | None) -> StepReport:
        statistics = scene.statistics
        alarm, suspects = self._judge(lane, statistics, batch)
        lane.steps += 1
        if alarm is None:
            report = StepReport(statistics)
            self._pass(lane, scene, batch)
            coefficient = 1.0
        else:
            report = self._treat(lane, scene, alarm, suspects, batch_index)
            coefficient = min((o.coefficient for o in report.outcomes), default=1.0)
        self._recorder.meter(lane, scene.statistics, coefficient, alarm=alarm is not None)
        if report.stop:
            self._exhausted(lane, report)
        return report

    # -- gradients -> statistics ---------------------------------------------------------------------------------------

    def _scene(self, lane: Lane, loss: Tensor | float | None, step: int | None, scaler: Any) -> Scene:
        scaled = scaler is not None and scaler.is_enabled()
        scale, number = scale_of(lane, scaler), lane.steps if step is None else step
        names, grads = lane.gradients()
        self._recorder.show(lane, number, names, grads, scale)
        statistics = measure(lane, self.module, self._team, loss, names, grads, step=number, scaled=scaled, scale=scale)
        return self._scene_of(lane, statistics, scaler if scaled else None, scale)

    def _scene_of(self, lane: Lane, statistics: GradientStatistics, scaler: Any = None, scale: float = 1.0) -> Scene:
        assert self._running is not None
        return Scene(
            module=self.module,
            optimizer=lane.optimizer,
            parameters=lane.parameters,
            snapshots=lane.snapshots,
            running=self._running,
            statistics=statistics,
            scaler=scaler,
            grad_scale=scale,
        )

    def settle(self) -> None:
        """Learn of the last step, and average the losses that are still each process's own: one process's state is that of all.

        Every process must call it at the same point; what is learned from the losses, and when, does not change.
        """
        for lane in self._lanes.values():
            self._catch_up(lane)
            if lane.losses:
                lane.shared += self._team.mean(lane.losses)
                lane.losses.clear()

    # -- statistics -> verdict -----------------------------------------------------------------------------------------

    def _judge(
        self, lane: Lane, statistics: GradientStatistics, batch: Any
    ) -> tuple[Verdict | None, tuple[Blame, ...]]:
        """Return the alarm, if any, with its suspects; send what only reports to the sinks."""
        readings = self._investigation.readings(lane)
        for verdict in lane.judge(statistics):
            if not verdict.alarm:
                self._recorder.notice(lane, statistics.step, verdict)
            elif not verdict.examine:
                return verdict, self._suspects(lane, statistics, readings, batch)
            elif found := self._look(lane, statistics, readings, batch, verdict):
                return verdict, found
        return self._check_up(lane, statistics) if lane.convalescent else (None, ())

    def _check_up(self, lane: Lane, statistics: GradientStatistics) -> tuple[Verdict | None, tuple[Blame, ...]]:
        """Look once more at layers of which one was mended: what damaged it may have gone on."""
        lane.convalescent = False
        found = self._suspects(lane, statistics, (), None, "changes")
        if not found:
            return None, ()
        reason = f"{found[0].layer} was mended, and is damaged again"
        return Verdict("sudden", "check-up", statistics.norm, lane.baseline.typical, reason, examine=True), found

    def _look(
        self,
        lane: Lane,
        statistics: GradientStatistics,
        readings: tuple[LayerReading, ...],
        batch: Any,
        verdict: Verdict,
    ) -> tuple[Blame, ...]:
        """Return who is found guilty of what has innocent causes; nobody in nearly every case."""
        single = verdict.form == "sudden"
        weigh = lane.glances.due(lane.steps) if single else self._time_to_examine(statistics.step)
        if not single and not weigh:
            return ()
        ask: Asked = "batch" if not weigh else "all" if verdict.form == "drift" else "changes"
        found = self._suspects(lane, statistics, readings, batch, ask)
        if any(s.layer != "batch" for s in found):
            return found
        if found and single:
            if lane.policy.may_hold:
                return found
            lane.batches.remember(batch)  # So many in a row are no accident: the data have changed for good.
        if weigh and not single:
            self._recorder.notice(lane, statistics.step, verdict)
        return ()

    def _suspects(
        self,
        lane: Lane,
        statistics: GradientStatistics,
        readings: tuple[LayerReading, ...],
        batch: Any,
        ask: Asked = "all",
    ) -> tuple[Blame, ...]:
        accused = lane.batches.accuse(batch) if batch is not None else None
        return suspects(lane, self.module, self._team, statistics, readings, accused, ask=ask)

    def _time_to_examine(self, step: int) -> bool:
        # Several processes judge the loss once in a few steps only, and must not miss the turn by that.
        return step % EXAMINE_EVERY < (1 if self._team.size == 1 else LOSS_EVERY)

    # -- verdict -> decision -> remedy ---------------------------------------------------------------------------------

    def _pass(self, lane: Lane, scene: Scene, batch: Any) -> None:
        """Let the step through, learning from it."""
        statistics = scene.statistics
        if not statistics.finite:
            # The overflow that a GradScaler expects: it holds the step and lowers its scale by itself.
            lane.reject(statistics)
            if self.mode == "guard":
                scene.running.mend()
            self._tell_of_poison(scene)
            return
        ordinary = lane.incident is not None and lane.baseline.ordinary(statistics.norm, statistics.loss)
        if lane.policy.rest(statistics.step, ordinary=ordinary) and lane.incident is not None:
            lane.convalescent = "reinitialize" in lane.incident.remedies
            self._recorder.close_incident(lane, statistics.step, helped=True)
        if self.mode == "guard":
            if self._hidden(lane, scene, batch):
                batch = None  # It is no measure of a healthy one.
            failure = keep(lane, lane.steps - 1, statistics, batch, self._team)
            if failure is not None:
                self._recorder.warn("snapshots", failure)
            self._update(lane, scene)
        lane.accept(statistics, float("inf"))

    def _hidden(self, lane: Lane, scene: Scene, batch: Any) -> bool:
        """Tell whether a normalisation hid from the gradient what must not stay in its running statistics."""
        hid = scene.running.accept(lambda: batch is not None and lane.batches.accuse(batch) is not None)
        if hid:
            self._recorder.warn(
                "running", "a batch made running statistics of a normalisation NaN, inf or huge; they were put back"
            )
        return hid

    def _update(self, lane: Lane, scene: Scene) -> None:
        for remedy in lane.lasting:
            with lane.isolating(remedy):
                remedy.before_update(scene)

    def _tell_of_poison(self, scene: Scene) -> None:
        if self.mode == "guard" and scene.scaler is None:
            self._recorder.warn(
                "poison", "a gradient that is not finite reaches the weights: no remedy that holds a step applies"
            )

    def _treat(
        self, lane: Lane, scene: Scene, verdict: Verdict, suspects: tuple[Blame, ...], batch_index: int | None
    ) -> StepReport:
        statistics = scene.statistics
        limit = lane.limit()
        decision = lane.policy.decide(
            verdict, statistics, blame=suspects, baseline=lane.baseline, can=set(lane.remedies)
        )
        scene.verdict, scene.decision, scene.blame = verdict, decision, suspects
        scene.buffers = lane.buffers
        scene.limit, scene.target = limit, lane.target(limit)
        outcomes = self._apply(lane, scene, decision) if self.mode == "guard" else ()
        held = any(o.applied and o.coefficient == 0.0 for o in outcomes)
        if held:
            lane.reject(statistics)
        elif statistics.finite:
            if self.mode == "guard":
                self._hidden(lane, scene, None)
                self._update(lane, scene)
            lane.accept(statistics, limit)
        else:
            self._tell_of_poison(scene)
        self._record(lane, Action(statistics.step, verdict, decision, outcomes), suspects, batch_index)
        # Who only watches has spent nothing, and must not end the run.
        stop = decision.exhausted and self.mode == "guard"
        return StepReport(statistics, verdict, decision, outcomes, held, stop)

    def _record(self, lane: Lane, action: Action, suspects: tuple[Blame, ...], batch_index: int | None) -> None:
        # The next batch is measured layer by layer, in case the trouble is not over. The first time without a trace: a
        # run that lost one batch must go on exactly as if it had never seen it.
        again = lane.policy.strikes > 1 or action.verdict.form == "cold-start"
        self._investigation.arm(lane, self.module, backward=again and self.mode == "guard")
        self._recorder.record(lane, action, suspects, batch_index)

    def _apply(self, lane: Lane, scene: Scene, decision: Decision) -> tuple[Outcome, ...]:
        outcomes = []
        for name in decision.remedies:
            outcome = Outcome(name, applied=False, detail="it failed itself")
            with lane.isolating(lane.remedies[name]):
                outcome = expected(lane.remedies[name].apply(scene), Outcome)
            outcomes.append(outcome)
        done = {o.remedy for o in outcomes if o.applied}
        if "reinitialize" in done and lane.baseline.count == 0:
            # What the first update would have been was the layer's doing, and says nothing of the rate.
            lane.baseline.update_ratio = 0.0
        setbacks, known = lane.baseline.setbacks, lane.baseline
        usual = max(known.first_norm, known.typical) if known.count >= YOUNG else known.prior
        if "rollback" in done and scene.snapshots.latest is not None:
            lane.load_memory(scene.snapshots.latest.extra)
        if "rollback" in done:
            lane.baseline.setback, lane.baseline.setbacks = lane.baseline.count, setbacks + 1
            lane.baseline.prior = usual
        if done - {"skip", "clip"}:
            # Running statistics may have been restored or reset together with the weights.
            scene.running.accept()
        return tuple(outcomes)

    # -- when all else fails -------------------------------------------------------------------------------------------

    def _exhausted(self, lane: Lane, report: StepReport) -> None:
        if self.on_exhausted == "continue":
            return
        if lane.incident is not None and lane.incident.helped is None:
            # It stays the open one: a loop that goes on regardless must not open a new incident at each step.
            lane.incident = dataclasses.replace(lane.incident, closed=report.statistics.step, helped=False)
            self._recorder.replace(lane.incident)
            self._recorder.tell("incident", lane.incident, "closed")
        if self.on_exhausted == "raise":
            raise TrainingDiverged(self.report())

    def report(self) -> str:
        """Return what happened and what was tried, one line an incident."""
        return self._recorder.report()

    def _never_worse(self, lane: Lane, error: Exception) -> None:
        """Put everything back after an error; raise it again unless the step may pass as if there were no guard."""
        lane.after_update()
        lane.gate.drop()
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
        for lane in self._lanes.values():
            lane.after_update()

    def epoch(self) -> None:
        """Tell the sinks that an epoch has ended."""
        self._recorder.tell("epoch")

    def flush(self) -> None:
        """Send the window under way to the sinks."""
        self._catch_up_alone()
        for lane in self._lanes.values():
            if lane.meter.steps and lane.last is not None:
                self._recorder.log(lane, lane.last, 1.0)

    def close(self) -> None:
        """Put everything back, and close the sinks; the guard can be attached again afterwards."""
        self._catch_up_alone()
        self._investigation.rest()
        for lane in self._lanes.values():
            lane.close()
        self._waiting |= {str(lane.index): lane.state_dict() for lane in self._lanes.values()}
        self._lanes.clear()
        self._running = None
        self._recorder.close()

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned: tensors, numbers, strings, lists and dicts only."""
        self._catch_up_alone()
        # Optimizers that have not been met yet keep what was loaded for them.
        lanes = {**self._waiting, **{str(lane.index): lane.state_dict() for lane in self._lanes.values()}}
        return {
            "version": VERSION,
            "lanes": lanes,
            "incidents": [to_json(i) for i in self._recorder.incidents],
            **self._investigation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; optimizers are matched in the order in which they are attached.

        Raises:
            GuardError: The state does not fit, or a part cannot load what it saved; nothing has been changed then.
        """
        rehearse(
            state,
            self._module,
            detectors=self._detectors,
            remedies=self._remedies,
            policy=self._policy,
            snapshots=self._snapshots,
            isolate=self.on_error == "warn",
        )
        self._recorder.incidents = [incident_from_json(i) for i in state["incidents"]]
        self._waiting = dict(state["lanes"])
        for lane in self._lanes.values():
            if str(lane.index) in self._waiting:
                lane.load_state_dict(self._waiting.pop(str(lane.index)))
                lane.resume()
        self._investigation.load_state_dict(state)
        if self._lanes:
            # The module's own state has been loaded too, and what is held next must not undo that.
            self._running = RunningStatistics(self.module)
            self._investigation.arm_again(self.module)
