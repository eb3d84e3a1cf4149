"""One step as the host judges it: gradients -> statistics -> verdict -> decision -> remedy -> record."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lightning_gradguard import treatment
from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.attribution.investigation import Asked, Investigation, agreed, suspects
from lightning_gradguard.attribution.optimizer_state import spoilt
from lightning_gradguard.attribution.probe import LayerReading, signal
from lightning_gradguard.detectors.overshoot import DEAD
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.history.baseline import YOUNG
from lightning_gradguard.optimizer_track import LIFE, OptimizerTrack, expected
from lightning_gradguard.records import Action, Decision, GradientStatistics, Outcome, Suspect, Verdict
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.snapshots.when import LOUD, attempt
from lightning_gradguard.statistics.collectives import Collectives, Own
from lightning_gradguard.statistics.joint_loss import LOSS_EVERY
from lightning_gradguard.statistics.measure import FEW, asks_for_update, measure, scale_of, with_update

EXAMINE_EVERY = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the guard did with one step.

    Args:
        statistics: The gradients as they arrived; on a GPU, where nothing is amiss, those of the step before.
        verdict: What was wrong, or None.
        decision: What was decided, or None.
        outcomes: What the remedies did.
        skipped: True if the update will touch nothing.
        stop: True if the budget is spent and the run should end.
    """

    statistics: GradientStatistics
    verdict: Verdict | None = None
    decision: Decision | None = None
    outcomes: tuple[Outcome, ...] = ()
    skipped: bool = False
    stop: bool = False


class Step:
    """What the steps of all optimizers have in common, and the way that each takes.

    Args:
        mode: ``"guard"`` acts; ``"watch"`` changes nothing and only reports.
        recorder: Keeps the record.

    Attributes:
        module: The root module.
        running: Running statistics of its normalisations.
        collectives: The processes that train together.
        investigation: Measures layers on suspicion.
    """

    module: nn.Module

    def __init__(self, mode: Literal["guard", "watch"], recorder: Recorder) -> None:
        self.mode = mode
        self.recorder = recorder
        self.collectives = Collectives()
        self.investigation = Investigation()
        self.running: RunningStatistics | None = None

    def run(self, track: OptimizerTrack, context: RemedyContext, batch: Any, batch_index: int | None) -> StepReport:
        """Judge the step, act on it, learn from it and record it."""
        alarm, suspects = self._judge(track, context, batch)
        statistics = context.statistics
        track.steps += 1
        if alarm is None:
            report = StepReport(statistics)
            self._pass(track, context, batch)
            coefficient = 1.0
        else:
            report = self._treat(track, context, alarm, suspects, batch_index)
            coefficient = min((o.coefficient for o in report.outcomes), default=1.0)
        self.note(track, context.statistics, coefficient, alarm=alarm is not None)
        return report

    def note(self, track: OptimizerTrack, statistics: GradientStatistics, coefficient: float, *, alarm: bool) -> None:
        """Take a step into the window under way, and send the window when it is full."""
        track.last = statistics
        if self.recorder.add(track.accumulator, statistics, coefficient, alarm=alarm, steps=track.steps):
            self.log(track, statistics, coefficient)

    def log(self, track: OptimizerTrack, statistics: GradientStatistics, coefficient: float) -> None:
        """Send the window that ends with this step."""
        # Before there is history the only limit is the number format's, which would stretch every picture by ten decades.
        limit = track.limit() if track.baseline.count else math.inf
        window = track.accumulator.window(
            statistics,
            typical=track.baseline.typical,
            optimizer=track.index,
            limit=limit,
            coefficient=coefficient,
            lr_factor=track.lr_factor,
            incidents=len(self.recorder.incidents),
        )
        self.recorder.tell("window", window)

    # -- gradients -> statistics ---------------------------------------------------------------------------------------

    def context(
        self, track: OptimizerTrack, loss: Tensor | float | None, step: int | None, scaler: Any
    ) -> RemedyContext:
        """Measure the gradients, and return all that remedies work with."""
        scaled = scaler is not None and scaler.is_enabled()
        scale, number = scale_of(track.optimizer, scaler), track.steps if step is None else step
        names, grads = track.gradients()
        self.recorder.show(track.steps, number, track.index, names, grads, scale)
        statistics = measure(
            names,
            grads,
            step=number,
            loss=lambda norm: self.loss_of(track, loss, norm),
            rate=track.rate(),
            scale=scale,
            sharded=track.sharded,
            scaled=scaled,
        )
        return self.context_of(track, self._look_closer(track, statistics, scale), scaler if scaled else None, scale)

    def loss_of(self, track: OptimizerTrack, loss: Tensor | float | None, norm: float) -> float | None:
        """Return the loss of a step as all processes see it, None while it can wait; learn those that have waited."""
        earlier, now = track.joint_loss.of(loss, self.collectives, track.steps, lambda: track.loss_can_wait(norm))
        track.baseline.recall(earlier)
        return now

    def _look_closer(self, track: OptimizerTrack, statistics: GradientStatistics, scale: float) -> GradientStatistics:
        """Measure also what is worth its cost in few steps only."""
        known = track.baseline
        if asks_for_update(known, statistics):
            first = track.snapshots.first if known.count == 1 and not track.sharded else None
            statistics = with_update(
                statistics,
                self.module,
                track.parameters,
                track.optimizer,
                scale=scale,
                factor=track.lr_factor,
                first=None if first is None else first.parameters,
            )
            known.look(statistics.rate)
        if track.growth is not None and track.fresh:
            statistics = dataclasses.replace(statistics, growth=track.growth)
        if track.tampered:
            largest = math.exp(known.high_water)
            found = spoilt(track.optimizer, track.parameters, track.snapshots.latest, largest)
            statistics = dataclasses.replace(statistics, spoilt=found)
        return statistics

    def context_of(
        self, track: OptimizerTrack, statistics: GradientStatistics, scaler: Any = None, scale: float = 1.0
    ) -> RemedyContext:
        """Return what remedies work with where the gradients have been measured."""
        assert self.running is not None
        return RemedyContext(
            module=self.module,
            optimizer=track.optimizer,
            parameters=track.parameters,
            snapshots=track.snapshots,
            running=self.running,
            statistics=statistics,
            scaler=scaler,
            progress=lambda: (track.baseline.at_best, track.baseline.learned),
            grad_scale=scale,
        )

    # -- statistics -> verdict -----------------------------------------------------------------------------------------

    def _judge(
        self, track: OptimizerTrack, context: RemedyContext, batch: Any
    ) -> tuple[Verdict | None, tuple[Suspect, ...]]:
        """Return the alarm, if any, with its suspects; send what only reports to the sinks."""
        statistics = context.statistics
        readings = self.investigation.readings(track.index)
        if self.mode == "guard" and (pending := treatment.pending(track, context, self.collectives)) is not None:
            look = pending.detector != treatment.INITIALIZE
            track.signal = agreed(signal(readings), self.collectives) if readings and look else None
            return pending, self._suspects(track, statistics, readings, batch) if look else ()
        if track.steps == 0 and readings and track.untouched:
            track.growth = agreed(signal(readings), self.collectives).growth
        elif (
            readings
            and track.incident is None
            and (varies := agreed(signal(readings), self.collectives).variation) is not None
        ):
            statistics = context.statistics = dataclasses.replace(statistics, variation=varies)
            track.dead = varies < DEAD
            if track.baseline.count >= 2 * LIFE:
                track.snapshots.pinned = track.snapshots.pinned and track.dead
        for verdict in track.judge(statistics):
            if track.resigned and verdict.form == "divergence" and not verdict.examine:
                continue
            if not verdict.alarm:
                self.recorder.notice(track.notices, statistics.step, verdict)
            elif not verdict.examine:
                return verdict, self._suspects(track, statistics, readings, batch)
            elif found := self._look(track, statistics, readings, batch, verdict):
                return verdict, found
        return self._check_up(track, statistics) if track.check_up else (None, ())

    def _check_up(
        self, track: OptimizerTrack, statistics: GradientStatistics
    ) -> tuple[Verdict | None, tuple[Suspect, ...]]:
        """Look at the layers because that was asked for, though nothing is amiss in this step."""
        track.check_up = False
        found = self._suspects(track, statistics, (), None, "changes")
        if not found:
            return None, ()
        reason = f"{found[0].layer} is damaged, though norm and loss do not show it"
        return Verdict("sudden", "check-up", statistics.norm, track.baseline.typical, reason, examine=True), found

    def _look(
        self,
        track: OptimizerTrack,
        statistics: GradientStatistics,
        readings: tuple[LayerReading, ...],
        batch: Any,
        verdict: Verdict,
    ) -> tuple[Suspect, ...]:
        """Return who is found guilty of what has innocent causes; nobody in nearly every case."""
        single = verdict.form == "sudden"
        weigh = track.odd_loss_interval.due(track.steps) if single else self._time_to_examine(statistics.step)
        if not single and not weigh:
            return ()
        ask: Asked = "batch" if not weigh else "all" if verdict.form == "drift" else "changes"
        found = self._suspects(track, statistics, readings, batch, ask)
        if any(s.layer != "batch" for s in found):
            return found
        if found and single:
            if statistics.norm <= LOUD * track.baseline.typical:
                return ()  # An update of the usual size harms nobody: data of heavy tails make such losses.
            if track.policy.may_skip:
                return found
            track.batches.remember(batch)  # So many in a row are no accident: the data have changed for good.
        if weigh and not single:
            self.recorder.notice(track.notices, statistics.step, verdict)
        return ()

    def _suspects(
        self,
        track: OptimizerTrack,
        statistics: GradientStatistics,
        readings: tuple[LayerReading, ...],
        batch: Any,
        ask: Asked = "all",
    ) -> tuple[Suspect, ...]:
        accused = Own(track.batches.accuse(batch) if batch is not None else None)
        return self.suspects(track, statistics, readings, accused, ask=ask)

    def suspects(
        self,
        track: OptimizerTrack,
        statistics: GradientStatistics,
        readings: tuple[LayerReading, ...],
        accused: Own[Suspect | None],
        *,
        ask: Asked = "all",
    ) -> tuple[Suspect, ...]:
        """Return whom the evidence speaks against, worst first."""
        return suspects(
            self.module,
            self.collectives,
            statistics,
            readings,
            accused,
            snapshots=track.snapshots,
            parameters=track.parameters,
            accepted=track.baseline.count,
            fresh=track.fresh and not track.baseline.learned,
            sharded=track.sharded,
            ask=ask,
        )

    def _time_to_examine(self, step: int) -> bool:
        # Several processes judge the loss once in a few steps only, and must not miss the turn by that.
        return step % EXAMINE_EVERY < (1 if self.collectives.size == 1 else LOSS_EVERY)

    # -- verdict -> decision -> remedy ---------------------------------------------------------------------------------

    def _pass(self, track: OptimizerTrack, context: RemedyContext, batch: Any) -> None:
        """Let the step through, learning from it."""
        statistics = context.statistics
        if not statistics.finite:
            # The overflow that a GradScaler expects: it holds the step and lowers its scale by itself.
            track.reject(statistics)
            if self.mode == "guard":
                context.running.mend()
            self._tell_of_poison(context)
            return
        ordinary = track.incident is not None and track.baseline.ordinary(statistics.norm, statistics.loss)
        rested = track.policy.rest(statistics.step, ordinary=ordinary, trial=track.trial is not None)
        if track.trial is not None and track.trial.verdict() in ("kept", "calm"):
            rested = True
            treatment.keep(track, statistics.step)
            track.policy.end_episode(statistics.step)
        if rested and track.incident is not None:
            # What damaged a layer that was mended may have gone on.
            track.check_up = "reinitialize" in track.incident.remedies
            self._close(track, statistics.step)
        if self.mode == "guard":
            if self._hidden(track, context, batch):
                batch = None  # It is no measure of a healthy one.
            # What damaged a layer may have gone on until now.
            if not track.check_up:
                self._keep(track, statistics, batch)
            self.update(track, context)
        track.accept(statistics, float("inf"))
        self.look_for_life(track)

    def _keep(self, track: OptimizerTrack, statistics: GradientStatistics, batch: Any) -> None:
        """Copy the state from before this step if it is worth it, and note how large a healthy batch is."""
        step = track.steps - 1
        if batch is not None and step < FEW:
            track.batches.remember(batch)
        if not track.worth_keeping(step, statistics):
            return
        if batch is not None:
            track.batches.remember(batch)
        if failure := attempt(track.snapshots, lambda: track.take_snapshot(step), self.collectives):
            self.recorder.warn("snapshots", failure)

    def look_for_life(self, track: OptimizerTrack) -> None:
        """Measure the layers in the next batch where the loss stands still, at longer and longer intervals."""
        track.resigned = track.resigned and not track.baseline.at_best
        if track.asks_for_life() and track.incident is None:
            self.investigation.arm(track.index, self.module, backward=False)

    def _hidden(self, track: OptimizerTrack, context: RemedyContext, batch: Any) -> bool:
        """Tell whether a normalisation hid from the gradient what must not stay in its running statistics."""
        hid = context.running.accept(lambda: batch is not None and track.batches.accuse(batch) is not None)
        if hid:
            self.recorder.warn(
                "running", "a batch made running statistics of a normalisation NaN, inf or huge; they were put back"
            )
        return hid

    def update(self, track: OptimizerTrack, context: RemedyContext) -> None:
        """Let the lasting remedies change what they change for an update that is going to be made."""
        for remedy in track.lasting:
            try:  # as in OptimizerTrack.judge
                remedy.before_update(context)
            except Exception as error:
                track.failed(remedy, error)

    def _tell_of_poison(self, context: RemedyContext) -> None:
        if self.mode == "guard" and context.scaler is None:
            self.recorder.warn(
                "poison", "a gradient that is not finite reaches the weights: no remedy that holds a step applies"
            )

    def _treat(
        self,
        track: OptimizerTrack,
        context: RemedyContext,
        verdict: Verdict,
        suspects: tuple[Suspect, ...],
        batch_index: int | None,
    ) -> StepReport:
        statistics = context.statistics
        limit = track.limit()
        decision = treatment.decide(track, verdict, statistics, suspects)
        context.verdict, context.decision, context.blame = verdict, decision, suspects
        context.buffers = track.buffers
        context.start = track.fresh and not track.baseline.learned
        context.update_ratio = track.baseline.first_ratio or track.baseline.update_ratio
        context.limit, context.target = limit, track.target(limit)
        if self.mode == "guard":
            treatment.begin(track, context)
            outcomes = self._apply(track, context, decision)
            treatment.open_trial(track, decision, outcomes, statistics.step)
        else:
            outcomes = ()
        skipped = any(o.applied and o.coefficient == 0.0 for o in outcomes)
        if skipped:
            track.reject(statistics)
        elif statistics.finite:
            if self.mode == "guard":
                self._hidden(track, context, None)
                self.update(track, context)
            track.accept(statistics, limit)
        else:
            self._tell_of_poison(context)
        self.record(track, Action(statistics.step, verdict, decision, outcomes), suspects, batch_index)
        if self.mode == "guard" and (decision.resign or decision.cause == Cause.REGIME.value):
            self._let_go(track, context, decision)
        # Who only watches has spent nothing, and must not end the run.
        stop = decision.exhausted and self.mode == "guard"
        return StepReport(statistics, verdict, decision, outcomes, skipped, stop)

    def _let_go(self, track: OptimizerTrack, context: RemedyContext, decision: Decision) -> None:
        """End an incident that no treatment has helped, or whose data are to be learned anew."""
        if track.trial is not None or track.untreated is not None:
            treatment.put_back(track, context)
        track.resigned = decision.resign
        if decision.cause == Cause.REGIME.value:
            track.learn_anew()
        if track.incident is not None and (track.trials or decision.cause == Cause.REGIME.value):
            track.policy.end_episode(context.statistics.step)
            self._close(track, context.statistics.step)

    def record(
        self, track: OptimizerTrack, action: Action, suspects: tuple[Suspect, ...], batch_index: int | None
    ) -> None:
        """Record an alarm, and measure the next batch layer by layer."""
        # In case the trouble is not over. The first time without a trace: a run that lost one batch must go on exactly as if it
        # had never seen it.
        again = track.policy.strikes > 1 or action.verdict.form == "cold-start" or action.decision.look
        self.investigation.arm(track.index, self.module, backward=again and self.mode == "guard")
        track.incident = self.recorder.record(
            track.incident,
            action,
            suspects,
            optimizer=track.index,
            form=track.policy.form(action.verdict, action.step),
            batch_index=batch_index,
            trials=track.trials,
        )

    def _close(self, track: OptimizerTrack, step: int) -> None:
        """Close the open incident, and forget the trouble that it was about."""
        assert track.incident is not None
        self.recorder.close_incident(track.incident, step, track.trials)
        track.incident, track.trials = None, []
        track.trouble, track.levels, track.at_start = [], None, False

    def _apply(self, track: OptimizerTrack, context: RemedyContext, decision: Decision) -> tuple[Outcome, ...]:
        outcomes = []
        for name in decision.remedies:
            outcome = Outcome(name, applied=False, detail="it failed itself")
            with track.isolating(track.remedies[name]):
                outcome = expected(track.remedies[name].apply(context), Outcome)
            outcomes.append(outcome)
        done = {o.remedy for o in outcomes if o.applied}
        if "reinitialize" in done and track.baseline.count == 0:
            # What the first update would have been was the layer's doing, and says nothing of the rate.
            track.baseline.update_ratio = 0.0
        known = track.baseline
        if "rollback" in done:
            usual = max(known.first_norm, known.typical) if known.count >= YOUNG else known.prior
            # What is known of updates and rates does not go back with the weights.
            ratio, first, convicted = known.update_ratio, known.first_ratio, known.convicted
            if context.snapshots.latest is not None:
                track.load_memory(context.snapshots.latest.extra)
            known.prior, known.update_ratio, known.first_ratio, known.convicted = usual, ratio, first, convicted
            # What was measured of the first weights holds when the layers are looked at there.
            track.growth, track.dead = (track.growth if decision.look else None), False
        if "initialize" in done or ("reinitialize" in done and known.count == 0):
            known.prior = 0.0  # It was of other weights.
        if "backoff" in done:
            known.update_ratio = known.first_ratio = 0.0
            known.convicted = True  # It was of another rate.
        if done - {"skip", "clip"}:
            # Running statistics may have been restored or reset together with the weights.
            context.running.accept()
        return tuple(outcomes)
