"""One step as the host judges it: gradients -> statistics -> verdict -> decision -> remedy -> record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lightning_gradguard import treating
from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.attribution.probe import LayerReading, signal
from lightning_gradguard.baseline import YOUNG
from lightning_gradguard.detectors.overshoot import DEAD
from lightning_gradguard.investigation import Asked, Investigation, agreed, suspects
from lightning_gradguard.keeping import LOUD, keep
from lightning_gradguard.lane import LIFE, Lane, expected
from lightning_gradguard.measuring import LOSS_EVERY, Team, measure, scale_of
from lightning_gradguard.recorder import Recorder
from lightning_gradguard.records import Action, Blame, Decision, GradientStatistics, Outcome, Verdict
from lightning_gradguard.remedies import Scene
from lightning_gradguard.running import RunningStatistics

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


class Flow:
    """What the steps of all optimizers have in common, and the way that each takes.

    Args:
        mode: ``"guard"`` acts; ``"watch"`` changes nothing and only reports.
        recorder: Keeps the record.

    Attributes:
        module: The root module.
        running: Running statistics of its normalisations.
        team: The processes that train together.
        investigation: Measures layers on suspicion.
    """

    module: nn.Module

    def __init__(self, mode: Literal["guard", "watch"], recorder: Recorder) -> None:
        self.mode = mode
        self.recorder = recorder
        self.team = Team()
        self.investigation = Investigation()
        self.running: RunningStatistics | None = None

    def step(self, lane: Lane, scene: Scene, batch: Any, batch_index: int | None) -> StepReport:
        """Judge the step, act on it, learn from it and record it."""
        alarm, suspects = self._judge(lane, scene, batch)
        statistics = scene.statistics
        lane.steps += 1
        if alarm is None:
            report = StepReport(statistics)
            self._pass(lane, scene, batch)
            coefficient = 1.0
        else:
            report = self._treat(lane, scene, alarm, suspects, batch_index)
            coefficient = min((o.coefficient for o in report.outcomes), default=1.0)
        self.recorder.meter(lane, scene.statistics, coefficient, alarm=alarm is not None)
        return report

    # -- gradients -> statistics ---------------------------------------------------------------------------------------

    def scene(self, lane: Lane, loss: Tensor | float | None, step: int | None, scaler: Any) -> Scene:
        """Measure the gradients, and return all that remedies work with."""
        scaled = scaler is not None and scaler.is_enabled()
        scale, number = scale_of(lane, scaler), lane.steps if step is None else step
        lane.number = number
        names, grads = lane.gradients()
        self.recorder.show(lane, number, names, grads, scale)
        statistics = measure(lane, self.module, self.team, loss, names, grads, step=number, scaled=scaled, scale=scale)
        return self.scene_of(lane, statistics, scaler if scaled else None, scale)

    def scene_of(self, lane: Lane, statistics: GradientStatistics, scaler: Any = None, scale: float = 1.0) -> Scene:
        """Return what remedies work with where the gradients have been measured."""
        assert self.running is not None
        return Scene(
            module=self.module,
            optimizer=lane.optimizer,
            parameters=lane.parameters,
            snapshots=lane.snapshots,
            running=self.running,
            statistics=statistics,
            scaler=scaler,
            progress=lambda: (lane.baseline.at_best, lane.baseline.learned),
            grad_scale=scale,
        )

    # -- statistics -> verdict -----------------------------------------------------------------------------------------

    def _judge(self, lane: Lane, scene: Scene, batch: Any) -> tuple[Verdict | None, tuple[Blame, ...]]:
        """Return the alarm, if any, with its suspects; send what only reports to the sinks."""
        statistics = scene.statistics
        readings = self.investigation.readings(lane)
        if self.mode == "guard" and (pending := treating.pending(lane, scene, self.team)) is not None:
            look = pending.detector != treating.INITIALIZE
            lane.signal = agreed(signal(readings), self.team) if readings and look else None
            return pending, self._suspects(lane, statistics, readings, batch) if look else ()
        if lane.steps == 0 and readings and lane.untouched:
            lane.growth = agreed(signal(readings), self.team).growth
        elif (
            readings and lane.incident is None and (varies := agreed(signal(readings), self.team).variation) is not None
        ):
            statistics = scene.statistics = dataclasses.replace(statistics, variation=varies)
            lane.dead = varies < DEAD
            if lane.baseline.count >= LIFE:
                lane.snapshots.pinned = lane.snapshots.pinned and lane.dead
        for verdict in lane.judge(statistics):
            if lane.resigned and verdict.form == "divergence" and not verdict.examine:
                continue
            if not verdict.alarm:
                self.recorder.notice(lane, statistics.step, verdict)
            elif not verdict.examine:
                return verdict, self._suspects(lane, statistics, readings, batch)
            elif found := self._look(lane, statistics, readings, batch, verdict):
                return verdict, found
        return self._check_up(lane, statistics) if lane.check_up else (None, ())

    def _check_up(self, lane: Lane, statistics: GradientStatistics) -> tuple[Verdict | None, tuple[Blame, ...]]:
        """Look at the layers because that was asked for, though nothing is amiss in this step."""
        lane.check_up = False
        found = self._suspects(lane, statistics, (), None, "changes")
        if not found:
            return None, ()
        reason = f"{found[0].layer} is damaged, though norm and loss do not show it"
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
            if statistics.norm <= LOUD * lane.baseline.typical:
                return ()  # An update of the usual size harms nobody: data of heavy tails make such losses.
            if lane.policy.may_hold:
                return found
            lane.batches.remember(batch)  # So many in a row are no accident: the data have changed for good.
        if weigh and not single:
            self.recorder.notice(lane, statistics.step, verdict)
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
        return suspects(lane, self.module, self.team, statistics, readings, accused, ask=ask)

    def _time_to_examine(self, step: int) -> bool:
        # Several processes judge the loss once in a few steps only, and must not miss the turn by that.
        return step % EXAMINE_EVERY < (1 if self.team.size == 1 else LOSS_EVERY)

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
        rested = lane.policy.rest(statistics.step, ordinary=ordinary, trial=lane.trial is not None)
        if lane.trial is not None and lane.trial.verdict() in ("kept", "calm"):
            rested = True
            treating.keep(lane, statistics.step)
            lane.policy.end_episode(statistics.step)
        if rested and lane.incident is not None:
            # What damaged a layer that was mended may have gone on.
            lane.check_up = "reinitialize" in lane.incident.remedies
            self.recorder.close_incident(lane, statistics.step)
            lane.trouble, lane.levels, lane.at_start = [], None, False
        if self.mode == "guard":
            if self._hidden(lane, scene, batch):
                batch = None  # It is no measure of a healthy one.
            # What damaged a layer may have gone on until now.
            failure = None if lane.check_up else keep(lane, lane.steps - 1, statistics, batch, self.team)
            if failure is not None:
                self.recorder.warn("snapshots", failure)
            self.update(lane, scene)
        lane.accept(statistics, float("inf"))
        self.look_for_life(lane)

    def look_for_life(self, lane: Lane) -> None:
        """Measure the layers in the next batch where the loss stands still, at longer and longer intervals."""
        lane.resigned = lane.resigned and not lane.baseline.at_best
        if lane.asks_for_life() and lane.incident is None:
            self.investigation.arm(lane, self.module, backward=False)

    def _hidden(self, lane: Lane, scene: Scene, batch: Any) -> bool:
        """Tell whether a normalisation hid from the gradient what must not stay in its running statistics."""
        hid = scene.running.accept(lambda: batch is not None and lane.batches.accuse(batch) is not None)
        if hid:
            self.recorder.warn(
                "running", "a batch made running statistics of a normalisation NaN, inf or huge; they were put back"
            )
        return hid

    def update(self, lane: Lane, scene: Scene) -> None:
        """Let the lasting remedies change what they change for an update that is going to be made."""
        for remedy in lane.lasting:
            try:  # as in Lane.judge
                remedy.before_update(scene)
            except Exception as error:
                lane.failed(remedy, error)

    def _tell_of_poison(self, scene: Scene) -> None:
        if self.mode == "guard" and scene.scaler is None:
            self.recorder.warn(
                "poison", "a gradient that is not finite reaches the weights: no remedy that holds a step applies"
            )

    def _treat(
        self, lane: Lane, scene: Scene, verdict: Verdict, suspects: tuple[Blame, ...], batch_index: int | None
    ) -> StepReport:
        statistics = scene.statistics
        limit = lane.limit()
        decision = treating.decide(lane, verdict, statistics, suspects)
        scene.verdict, scene.decision, scene.blame = verdict, decision, suspects
        scene.buffers = lane.buffers
        scene.start = lane.fresh and not lane.baseline.learned
        scene.update_ratio = lane.baseline.first_ratio or lane.baseline.update_ratio
        scene.limit, scene.target = limit, lane.target(limit)
        if self.mode == "guard":
            treating.begin(lane, scene)
            outcomes = self._apply(lane, scene, decision)
            treating.open_trial(lane, decision, outcomes, statistics.step)
        else:
            outcomes = ()
        held = any(o.applied and o.coefficient == 0.0 for o in outcomes)
        if held:
            lane.reject(statistics)
        elif statistics.finite:
            if self.mode == "guard":
                self._hidden(lane, scene, None)
                self.update(lane, scene)
            lane.accept(statistics, limit)
        else:
            self._tell_of_poison(scene)
        self.record(lane, Action(statistics.step, verdict, decision, outcomes), suspects, batch_index)
        if self.mode == "guard" and (decision.resign or decision.cause == Cause.REGIME.value):
            self._let_go(lane, scene, decision)
        # Who only watches has spent nothing, and must not end the run.
        stop = decision.exhausted and self.mode == "guard"
        return StepReport(statistics, verdict, decision, outcomes, held, stop)

    def _let_go(self, lane: Lane, scene: Scene, decision: Decision) -> None:
        """End an incident that no treatment has helped, or whose data are to be learned anew."""
        if lane.trial is not None or lane.untreated is not None:
            treating.put_back(lane, scene)
        lane.resigned = decision.resign
        if decision.cause == Cause.REGIME.value:
            lane.learn_anew()
        if lane.incident is not None and (lane.trials or decision.cause == Cause.REGIME.value):
            lane.policy.end_episode(scene.statistics.step)
            self.recorder.close_incident(lane, scene.statistics.step)
            lane.trouble, lane.levels, lane.at_start = [], None, False

    def record(self, lane: Lane, action: Action, suspects: tuple[Blame, ...], batch_index: int | None) -> None:
        """Record an alarm, and measure the next batch layer by layer."""
        # In case the trouble is not over. The first time without a trace: a run that lost one batch must go on exactly as if it
        # had never seen it.
        again = lane.policy.strikes > 1 or action.verdict.form == "cold-start" or action.decision.look
        self.investigation.arm(lane, self.module, backward=again and self.mode == "guard")
        self.recorder.record(lane, action, suspects, batch_index)

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
        known = lane.baseline
        if "rollback" in done:
            usual = max(known.first_norm, known.typical) if known.count >= YOUNG else known.prior
            # What is known of updates and rates does not go back with the weights.
            ratio, first, convicted = known.update_ratio, known.first_ratio, known.convicted
            if scene.snapshots.latest is not None:
                lane.load_memory(scene.snapshots.latest.extra)
            known.prior, known.update_ratio, known.first_ratio, known.convicted = usual, ratio, first, convicted
            lane.growth, lane.dead = None, False
        if "initialize" in done or ("reinitialize" in done and known.count == 0):
            known.prior = 0.0  # It was of other weights.
        if "backoff" in done:
            known.update_ratio = known.first_ratio = 0.0
            known.convicted = True  # It was of another rate.
        if done - {"skip", "clip"}:
            # Running statistics may have been restored or reset together with the weights.
            scene.running.accept()
        return tuple(outcomes)
