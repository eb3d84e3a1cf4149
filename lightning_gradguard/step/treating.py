"""Verdict -> decision -> remedy. One idea: what is done about an alarm, and learned from a step that had one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lightning_gradguard.attribution.cause import Cause, in_order
from lightning_gradguard.attribution.optimizer_numbers import at_fault, odd_number
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Case
from lightning_gradguard.policy.act import FIRST_AID, ON_TRIAL, Act
from lightning_gradguard.policy.attempts import first_aid
from lightning_gradguard.records import Action, Decision, GradientStatistics, Outcome, StepReport, Suspect, Verdict
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.statistics.update_ratio import BOUNDED, PROPORTIONAL
from lightning_gradguard.step.companions import another_on_trial, go_back_too
from lightning_gradguard.step.copying import captured, copy, expect_as_then, moved_too_far, put_back
from lightning_gradguard.step.halting import halted, halts
from lightning_gradguard.step.keeping import keep
from lightning_gradguard.step.learning import accept, learn_anew, reject
from lightning_gradguard.step.passing import hidden, tell_of_poison
from lightning_gradguard.step.recording import close, record
from lightning_gradguard.step.run import Run
from lightning_gradguard.step.watching import told_at_start
from lightning_gradguard.treatment import own_verdicts


def treat(
    run: Run,
    track: OptimizerTrack,
    context: RemedyContext,
    verdict: Verdict,
    suspects: tuple[Suspect, ...],
    batch_index: int | None,
) -> StepReport:
    """Decide what to do about an alarm, do it, learn from what is let through, and record it."""
    statistics, limit = context.statistics, track.limit()
    if another_on_trial(run, track):
        called_for = first_aid(verdict, statistics, suspects, track.remedies.can)
    else:
        called_for = _decide(run, track, verdict, context, suspects)
    decision = dataclasses.replace(called_for, remedies=track.remedies.chosen(called_for.remedies))
    ends = halts(run, called_for)
    bundle, suspects = keep(run, track, statistics, verdict, _accused(track, called_for, suspects), ends=ends)
    decision = _of_machine(decision, suspects, treats=not (ends or FIRST_AID.issuperset(called_for.remedies)))
    decision = halted(context, decision) if ends else decision
    _tell(track, context, verdict, decision, suspects, limit)
    context.acts = called_for.remedies
    outcomes: tuple[Outcome, ...] = ()
    if run.acts:
        _prepare(run, track, called_for, context)
        outcomes = go_back_too(run, track, track.remedies.apply(decision.remedies, context))
        _learn_of_remedies(track, context, outcomes)
        if track.baseline.count == 0 and Act.REINITIALIZE in track.remedies.done_by(
            [o.remedy for o in outcomes if o.applied]
        ):
            # From here on the repaired network is the beginning that a lower rate goes back to.
            copy(run, track, track.steps)
        _open_trial(track, decision, outcomes, statistics.step)
    if not any(outcome.skips for outcome in outcomes):
        if not statistics.finite and not ends:
            tell_of_poison(run, context)
        elif run.acts:
            hidden(run, track, context, None)
            track.remedies.before_update(context)
    action = Action(statistics.step, verdict, decision, outcomes)
    skipped = conclude(run, track, statistics, action, suspects, batch_index, limit, bundle=bundle)
    if run.acts and (decision.resign or decision.cause == Cause.REGIME.value):
        _let_go(run, track, context, decision)
    # Who only watches has spent nothing, and must not end the run.
    return StepReport(statistics, verdict, decision, outcomes, skipped, decision.exhausted and (run.acts or ends))


def conclude(
    run: Run,
    track: OptimizerTrack,
    statistics: GradientStatistics,
    action: Action,
    suspects: tuple[Suspect, ...],
    batch_index: int | None,
    limit: float,
    *,
    bundle: str = "",
) -> bool:
    """Learn from an alarming step what may be learned, and record it; return whether it was skipped."""
    skipped = any(outcome.skips for outcome in action.outcomes)
    if skipped or (run.halts and action.decision.exhausted):
        reject(track, statistics)
    elif statistics.finite:
        accept(track, statistics, limit)
    record(run, track, action, suspects, batch_index, bundle=bundle)
    return skipped


def _accused(track: OptimizerTrack, called_for: Decision, suspects: tuple[Suspect, ...]) -> tuple[Suspect, ...]:
    """Return the suspects with those first whom the cause speaks of."""
    odd = at_fault(track.optimizer) if called_for.cause == Cause.SETTINGS.value else ()
    return (*odd, *in_order(suspects, called_for.cause))


def _of_machine(decision: Decision, suspects: tuple[Suspect, ...], *, treats: bool) -> Decision:
    """Return the decision with a machine as its cause, where one is accused and nothing is treated for another."""
    accused = bool(suspects) and suspects[0].is_machine
    return dataclasses.replace(decision, cause=Cause.MACHINE.value) if accused and not treats else decision


def _decide(
    run: Run, track: OptimizerTrack, verdict: Verdict, context: RemedyContext, suspects: tuple[Suspect, ...]
) -> Decision:
    """Return what to do about an alarm, in the ladder's words."""
    treatment, can, statistics = track.treatment, track.remedies.can, context.statistics
    if own_verdicts.is_used_up(verdict):
        return treatment.skip_used_up(statistics, can_skip=Act.SKIP in can)
    # A single spike is left to first aid: only what goes on is worth the comparison.
    goes_on = verdict.examine or (verdict.stands_out and track.policy.strikes > 0)
    # Where a layer, the batch or the optimizer's state stands out, it is no update that has brought the trouble.
    replaced = treatment.replaced(track.baseline) and not (suspects or verdict.of_optimizer)
    case = Case(
        track.baseline,
        can,
        start=track.fresh and (treatment.unlearned(track.baseline) or replaced),
        looked=treatment.signal.looked,
        trial=treatment.trial,
        signal=treatment.signal.seen,
        odd=odd_number(track.optimizer) if Act.TUNE in can else None,
        searching=track.climbs or track.baseline.updates.risen(statistics.rate),
        passed=track.policy.passed,
        stale=any(one.stale.piled_up for one in run.tracks),
        displaced=statistics.finite and goes_on and moved_too_far(track),
        foretold=type(track.optimizer).__name__ in PROPORTIONAL | BOUNDED and track.baseline.updates.measured,
        aside=context.aside,
    )
    decided = treatment.decide(verdict, statistics, suspects, case, policy=track.policy, snapshots=track.snapshots)
    return told_at_start(track, verdict, case, decided)


def _tell(
    track: OptimizerTrack,
    context: RemedyContext,
    verdict: Verdict,
    decision: Decision,
    suspects: tuple[Suspect, ...],
    limit: float,
) -> None:
    """Tell the remedies what is known of the alarm."""
    context.verdict, context.decision, context.blame = verdict, decision, suspects
    context.buffers = track.trained.buffers()
    context.treated = track.treatment.under_way
    context.start = track.fresh and not track.baseline.losses.learned
    context.update_ratio = track.baseline.updates.first_ratio or track.baseline.updates.ratio
    context.limit, context.target = limit, track.target(limit)


def _prepare(run: Run, track: OptimizerTrack, called_for: Decision, context: RemedyContext) -> None:
    """Copy what a treatment may have to be taken back to, and undo the one that it takes the place of."""
    known = track.baseline
    if track.snapshots.empty and known.count == 0:
        # Whatever becomes of the very first steps, there must be something to go back to.
        copy(run, track, track.steps - 1)
    track.treatment.prepare(
        called_for,
        finite=context.statistics.finite,
        unlearned=track.treatment.unlearned(known),
        snapshots=track.snapshots,
        capture=lambda: captured(run, track),
    )
    track.treatment.supersede(called_for, context.statistics.step, known.count)
    _undo(track, context)


def _learn_of_remedies(track: OptimizerTrack, context: RemedyContext, outcomes: Sequence[Outcome]) -> None:
    """Learn what remedies have made of the run: expectations go back with the weights, and a rate may be another."""
    known = track.baseline
    done = track.remedies.done_by([outcome.remedy for outcome in outcomes if outcome.applied])
    at_first = known.count == 0
    if Act.REINITIALIZE in done and at_first:
        known.updates.forget_ratio()
    if Act.ROLLBACK in done:
        expect_as_then(track, track.snapshots.latest, look=context.decision is not None and context.decision.look)
    if Act.INITIALIZE in done or (Act.REINITIALIZE in done and known.count == 0):
        known.norms.forget_prior()
    if {Act.INITIALIZE, Act.REINITIALIZE} & done:
        track.treatment.signal.redraw()
    if Act.BACKOFF in done:
        known.updates.slow_down()
    if done - FIRST_AID:
        # Running statistics may have been restored or reset together with the weights.
        context.running.accept()


def _open_trial(track: OptimizerTrack, decision: Decision, outcomes: Sequence[Outcome], step: int) -> None:
    applied = [outcome.remedy for outcome in outcomes if outcome.applied]
    done = [name for name in applied if ON_TRIAL & track.remedies.done_by([name])]
    slower = Act.BACKOFF in track.remedies.done_by(done)
    track.treatment.open_trial(decision, done, step, track.baseline.count, lowers_rate=slower)


def _undo(track: OptimizerTrack, context: RemedyContext) -> None:
    """Have the remedies of trials that have just failed undo what lasts of them."""
    failed, track.treatment.failed = track.treatment.failed, ()
    if failed:
        track.remedies.take_back(failed, context)


def _let_go(run: Run, track: OptimizerTrack, context: RemedyContext, decision: Decision) -> None:
    """End an incident that no treatment has helped, or whose data are to be learned anew."""
    treatment, step = track.treatment, context.statistics.step
    anew = decision.cause == Cause.REGIME.value
    if treatment.under_way:
        copied = track.snapshots.latest is not None
        untreated = treatment.take_back(step, track.baseline.count, copied=copied)
        _undo(track, context)
        track.remedies.give_up()
        if untreated is not None:
            put_back(track, untreated)
        context.running.accept()
    treatment.resigned = decision.resign
    if anew:
        learn_anew(track)
    # Gradients that are not finite stay so, and each step of them is of the same trouble.
    if track.incident is not None and (anew or (treatment.trials and context.statistics.finite)):
        track.policy.end_episode(step)
        close(run, track, step)
