"""A treatment from its decision to its end: on trial, kept, or taken back."""

from __future__ import annotations

import dataclasses
import math
import statistics as stats
from collections.abc import Sequence

from lightning_gradguard.attribution.optimizer_numbers import vanishing_number
from lightning_gradguard.history.baseline import LARGE, RECENT, YOUNG
from lightning_gradguard.optimizer_track import LIFE, Lane
from lightning_gradguard.policy import Case, Trial
from lightning_gradguard.policy.policy import LASTING
from lightning_gradguard.policy.trial import WINDOW, WINDOWS
from lightning_gradguard.records import Blame, Decision, GradientStatistics, Outcome, TrialRecord, Verdict
from lightning_gradguard.remedies import Initialize, LearningRateBackoff, Scene
from lightning_gradguard.snapshots.store import restore
from lightning_gradguard.statistics.measure import Team

INITIALIZE = "initialize"
"""Detector of a batch that was used to measure the signal."""


def pending(lane: Lane, scene: Scene, team: Team) -> Verdict | None:
    """Return the alarm of a step that a treatment under way has something to say of, or None."""
    found = scene.statistics
    if lane.looking is not None:
        verdict, lane.looking = lane.looking, None
        return verdict
    initialize = lane.remedies.get("initialize")
    if isinstance(initialize, Initialize) and initialize.at_work:
        told = initialize.finish(team.mean if team.size > 1 else None)
        # From here on this is the beginning that a lower rate goes back to.
        lane.snapshots.take(lane.steps, lane.parameters, lane.buffers, lane.optimizer, lane.memory())
        return Verdict("cold-start", INITIALIZE, found.norm, math.inf, told)
    trial = lane.trial
    if trial is None or not found.finite:
        return None
    if "backoff" in trial.treatment and trial.lost(found.loss, trial.before[0] if trial.before else math.nan):
        level = trial.level
        return Verdict(
            "divergence", "trial", found.loss or 0.0, level, f"loss {found.loss:.3g} after {level:.3g}: lost again"
        )
    trial.observe(found.loss)
    if trial.verdict(large=lane.baseline.update_ratio > LARGE) == "too fast":
        told = f"loss {trial.level:.3g} is no better, and updates are {lane.baseline.update_ratio:.2g} x the weights"
        return Verdict("divergence", "trial", trial.level, _level(trial.before), told)
    if trial.verdict() == "taken back":
        reason = f"{_named(trial.treatment)} made nothing better: loss {trial.level:.3g}"
        return Verdict("divergence", "trial", trial.level, _level(trial.trouble), reason, examine=True)
    return None


def case(lane: Lane, *, looked: bool) -> Case:
    """Return what the policy has to know of a run besides the alarm."""
    known = lane.baseline
    # Who had learned something before the trouble is at no start, wherever it has gone back to.
    had_learned = lane.levels is not None and lane.levels[2]
    unlearned = not known.learned and not had_learned and (bool(known.first_losses) or known.count < 2 * YOUNG)
    return Case(
        known,
        set(lane.remedies),
        (unlearned or lane.dead or lane.at_start) and lane.fresh,
        looked,
        lane.trial,
        lane.signal,
    )


def decide(lane: Lane, verdict: Verdict, found: GradientStatistics, suspects: Sequence[Blame]) -> Decision:
    """Return what to do about an alarm, that of a treatment under way included."""
    if verdict.detector == INITIALIZE:
        held = ("skip",) if "skip" in lane.remedies else ()
        return Decision(held, "the batch was used to measure", lane.trial.cause if lane.trial else "")
    here = case(lane, looked=lane.looked)
    if any(suspect.broken for suspect in suspects):
        here = dataclasses.replace(here, vanishing=vanishing_number(lane.optimizer))
    if verdict.detector == "trial" and verdict.examine and lane.trial is not None:
        end(lane, found.step, "taken back")
        decision = lane.policy.next_treatment(here, verdict.reason)
    else:
        if lane.trial is not None and lane.trial.sick_from_its_beginning():
            lane.snapshots.discard_latest()
        if found.loss is not None:
            lane.trouble = [*lane.trouble, found.loss][-WINDOW:]
        if lane.levels is None or (lane.trial is None and not lane.looked):
            lane.levels = _levels(lane, verdict)
        decision = lane.policy.decide(verdict, found, suspects, here)
    lane.looked = False
    lane.at_start = here.start
    if decision.look:
        lane.looking, lane.looked = verdict, True
    return decision


def _levels(lane: Lane, verdict: Verdict) -> tuple[list[float], list[float], bool]:
    """Return losses from before the trouble, those of the trouble, and whether the run had learned something before."""
    known = lane.baseline
    lost = verdict.form == "divergence"
    if known.learned:
        before = known.best_losses if lost else known.latest_losses(WINDOW * WINDOWS)
        return before, (known.latest_losses(RECENT) if lost else []) + lane.trouble, True
    return known.first_losses[:1], known.latest_losses(WINDOW)[1:] + lane.trouble, False


def begin(lane: Lane, scene: Scene) -> None:
    """Make ready for a treatment, if one is about to be made: copy the state from before it."""
    decision = scene.decision
    if lane.snapshots.empty and lane.baseline.count == 0:
        # Whatever becomes of the very first steps, there must be something to go back to.
        lane.snapshots.take(lane.steps - 1, lane.parameters, lane.buffers, lane.optimizer, lane.memory())
    if decision is None or not set(decision.remedies) & LASTING or lane.snapshots.keep == 0:
        return
    if decision.look or (not decision.again and case(lane, looked=False).start and "rollback" in decision.remedies):
        lane.snapshots.only_first()
    if lane.untreated is None and scene.statistics.finite:
        lane.untreated = lane.snapshots.capture(
            lane.steps, lane.parameters, lane.buffers, lane.optimizer, lane.memory()
        )


def open_trial(lane: Lane, decision: Decision, outcomes: Sequence[Outcome], step: int) -> None:
    """Put a treatment that was made on trial; one that only goes on (a lower rate) stays on the old one."""
    done = tuple(o.remedy for o in outcomes if o.applied and o.remedy in LASTING)
    if not done or decision.look or decision.again:
        return
    before, trouble, learned = lane.levels or ([], [], False)
    if lane.trial is not None:
        end(lane, step, "taken back")
    lane.trial = Trial(decision.cause, done, step, before=before, trouble=trouble, learned=learned, last=decision.last)


def keep(lane: Lane, step: int) -> None:
    """Keep the treatment on trial."""
    assert lane.trial is not None
    end(lane, step, lane.trial.verdict())
    lane.untreated, lane.at_start = None, False


def end(lane: Lane, step: int, outcome: str) -> None:
    """End the trial, and note how."""
    trial, lane.trial = lane.trial, None
    if trial is None:
        return
    lane.next_look = lane.baseline.count + LIFE
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
    lane.trials = [*lane.trials, record]


def put_back(lane: Lane, scene: Scene) -> None:
    """Take the treatments back: to the state from before them, unless that was worse than where they have brought the run."""
    trial, untreated = lane.trial, lane.untreated
    level = trial.level if trial is not None else lane.trials[-1].after if lane.trials else math.nan
    end(lane, scene.statistics.step, "taken back")
    lane.untreated = None
    backoff = lane.remedies.get("backoff")
    if isinstance(backoff, LearningRateBackoff):
        backoff.acquit()  # Whatever was at fault, lowering the rate was no cure.
    worse = bool(lane.trouble) and not _level(lane.trouble) <= level
    if untreated is not None and not (worse and lane.snapshots.latest is not None):
        restore(untreated, lane.parameters, lane.buffers, lane.optimizer)
        lane.load_memory(untreated.extra)
    scene.running.accept()


def _level(losses: Sequence[float]) -> float:
    return stats.median(losses) if losses else math.nan


def _named(treatment: Sequence[str]) -> str:
    return " and ".join(treatment)
