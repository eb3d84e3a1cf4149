"""A treatment from its decision to its end: on trial, kept, or taken back."""

from __future__ import annotations

import dataclasses
import math
import statistics as stats
from collections.abc import Sequence

from lightning_gradguard.attribution.optimizer_numbers import vanishing_number
from lightning_gradguard.history.baseline import LARGE, RECENT, YOUNG
from lightning_gradguard.optimizer_track import LIFE, OptimizerTrack
from lightning_gradguard.policy import Case, Trial
from lightning_gradguard.policy.policy import LASTING
from lightning_gradguard.policy.trial import WINDOW, WINDOWS
from lightning_gradguard.records import Decision, GradientStatistics, Outcome, Suspect, TrialRecord, Verdict
from lightning_gradguard.remedies import Initialize, RemedyContext
from lightning_gradguard.snapshots.store import restore
from lightning_gradguard.statistics.collectives import Collectives

INITIALIZE = "initialize"
"""Detector of a batch that was used to measure the signal."""


def pending(track: OptimizerTrack, context: RemedyContext, collectives: Collectives) -> Verdict | None:
    """Return the alarm of a step that a treatment under way has something to say of, or None."""
    found = context.statistics
    if track.looking is not None:
        verdict, track.looking = track.looking, None
        return verdict
    initialize = track.remedies.get("initialize")
    if isinstance(initialize, Initialize) and initialize.at_work:
        told = initialize.finish(collectives.mean if collectives.size > 1 else None)
        # From here on this is the beginning that a lower rate goes back to.
        track.take_snapshot(track.steps)
        return Verdict("cold-start", INITIALIZE, found.norm, math.inf, told)
    trial = track.trial
    if trial is None or not found.finite:
        return None
    if "backoff" in trial.treatment and trial.lost(found.loss):
        level = trial.level
        return Verdict(
            "divergence", "trial", found.loss or 0.0, level, f"loss {found.loss:.3g} after {level:.3g}: lost again"
        )
    trial.observe(found.loss)
    if trial.verdict(large=track.baseline.update_ratio > LARGE) == "too fast":
        told = f"loss {trial.level:.3g} is no better, and updates are {track.baseline.update_ratio:.2g} x the weights"
        return Verdict("divergence", "trial", trial.level, _level(trial.before), told)
    if trial.verdict() == "taken back":
        reason = f"{_named(trial.treatment)} made nothing better: loss {trial.level:.3g}"
        return Verdict("divergence", "trial", trial.level, _level(trial.trouble), reason, examine=True)
    return None


def case(track: OptimizerTrack, *, looked: bool) -> Case:
    """Return what the policy has to know of a run besides the alarm."""
    known = track.baseline
    # Who had learned something before the trouble is at no start, wherever it has gone back to.
    had_learned = track.levels is not None and track.levels[2]
    unlearned = not known.learned and not had_learned and (bool(known.first_losses) or known.count < 2 * YOUNG)
    unlearned = unlearned or track.dead or track.at_start
    return Case(
        known,
        set(track.remedies),
        unlearned and track.fresh,
        looked,
        track.trial,
        track.signal,
        unlearned=unlearned,
    )


def decide(track: OptimizerTrack, verdict: Verdict, found: GradientStatistics, suspects: Sequence[Suspect]) -> Decision:
    """Return what to do about an alarm, that of a treatment under way included."""
    if verdict.detector == INITIALIZE:
        held = ("skip",) if "skip" in track.remedies else ()
        return Decision(held, "the batch was used to measure", track.trial.cause if track.trial else "")
    here = case(track, looked=track.looked)
    if any(suspect.broken for suspect in suspects):
        here = dataclasses.replace(here, vanishing=vanishing_number(track.optimizer))
    if verdict.detector == "trial" and verdict.examine and track.trial is not None:
        end(track, found.step, "taken back")
        decision = track.policy.next_treatment(here, verdict.reason)
    else:
        if track.trial is not None and track.trial.sick_from_its_beginning():
            track.snapshots.discard_latest()
        if found.loss is not None:
            track.trouble = [*track.trouble, found.loss][-WINDOW:]
        if track.levels is None or (track.trial is None and not track.looked):
            track.levels = _levels(track, verdict)
        decision = track.policy.decide(verdict, found, suspects, here)
    track.looked = False
    track.at_start = here.start
    if decision.look:
        track.looking, track.looked = verdict, True
    return decision


def _levels(track: OptimizerTrack, verdict: Verdict) -> tuple[list[float], list[float], bool]:
    """Return losses from before the trouble, those of the trouble, and whether the run had learned something before."""
    known = track.baseline
    lost = verdict.form == "divergence"
    if known.learned and not track.dead:
        before = known.best_losses if lost else known.latest_losses(WINDOW * WINDOWS)
        return before, (known.latest_losses(RECENT) if lost else []) + track.trouble, True
    return known.untrained_losses, known.latest_losses(WINDOW)[1:] + track.trouble, False


def begin(track: OptimizerTrack, context: RemedyContext) -> None:
    """Make ready for a treatment, if one is about to be made: copy the state from before it."""
    decision = context.decision
    if track.snapshots.empty and track.baseline.count == 0:
        # Whatever becomes of the very first steps, there must be something to go back to.
        track.take_snapshot(track.steps - 1)
    if decision is None or not set(decision.remedies) & LASTING or track.snapshots.keep == 0:
        return
    if decision.look or (
        not decision.again and case(track, looked=False).unlearned and "rollback" in decision.remedies
    ):
        track.snapshots.only_first()
    if track.untreated is None and context.statistics.finite:
        track.untreated = track.capture()


def open_trial(track: OptimizerTrack, decision: Decision, outcomes: Sequence[Outcome], step: int) -> None:
    """Put a treatment that was made on trial; one that only goes on (a lower rate) stays on the old one."""
    done = tuple(o.remedy for o in outcomes if o.applied and o.remedy in LASTING)
    if not done or decision.look or decision.again:
        return
    before, trouble, learned = track.levels or ([], [], False)
    if track.trial is not None:
        end(track, step, "taken back")
    track.trial = Trial(decision.cause, done, step, before=before, trouble=trouble, learned=learned, last=decision.last)


def keep(track: OptimizerTrack, step: int) -> None:
    """Keep the treatment on trial."""
    assert track.trial is not None
    end(track, step, track.trial.verdict())
    track.untreated, track.at_start = None, False


def end(track: OptimizerTrack, step: int, outcome: str) -> None:
    """End the trial, and note how."""
    trial, track.trial = track.trial, None
    if trial is None:
        return
    track.next_look = track.baseline.count + LIFE
    record = TrialRecord(
        trial.cause,
        trial.treatment,
        trial.step,
        step,
        outcome,
        _level(trial.before),
        _level(trial.trouble),
        trial.level,
    )
    track.trials = [*track.trials, record]


def put_back(track: OptimizerTrack, context: RemedyContext) -> None:
    """Take the treatments back: to the state from before them, unless that was worse than where they have brought the run."""
    trial, untreated = track.trial, track.untreated
    level = trial.level if trial is not None else track.trials[-1].after if track.trials else math.nan
    end(track, context.statistics.step, "taken back")
    track.untreated = None
    for remedy in list(track.remedies.values()):
        with track.isolating(remedy):
            remedy.take_back()
    worse = bool(track.trouble) and not _level(track.trouble) <= level
    if untreated is not None and not (worse and track.snapshots.latest is not None):
        restore(untreated, track.parameters, track.buffers, track.optimizer)
        track.load_memory(untreated.extra)
    context.running.accept()


def _level(losses: Sequence[float]) -> float:
    return stats.median(losses) if losses else math.nan


def _named(treatment: Sequence[str]) -> str:
    return " and ".join(treatment)
