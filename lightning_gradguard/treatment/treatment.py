"""A treatment from its decision to its end: on trial, kept, or taken back.

One idea: what is decided is done elsewhere; here stands what is known of the trouble, and of what was tried against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.level import level_of
from lightning_gradguard.history.sample import RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import WHOLE
from lightning_gradguard.policy import Case, Policy, Trial
from lightning_gradguard.policy.act import ON_TRIAL, Act
from lightning_gradguard.policy.ending import Ending
from lightning_gradguard.policy.helped import helped
from lightning_gradguard.policy.trial import WINDOW, WINDOWS
from lightning_gradguard.records import Decision, GradientStatistics, Suspect, TrialRecord, Verdict
from lightning_gradguard.snapshots.snapshot import Snapshot, plain
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.treatment import own_verdicts
from lightning_gradguard.treatment.signal_watch import LIFE, SignalWatch


class Treatment:
    """Know what is being tried against the trouble of one optimizer, and how what was tried has ended.

    Attributes:
        signal: What was seen of the signal.
        trial: The treatment on trial, or None.
        untreated: The state from before it.
        trials: How the trials of the open incident have ended.
        resigned: Whether all treatments have failed, so that only first aid is left until the loss is far worse.
        failed: Names of the remedies of trials that have just failed, and that are to be undone.
        in_vain: Whether the run is out of the trouble, and not shown to be better than before it, by what was kept.
        bare: Whether it goes on from a checkpoint that holds a trial, and not the state from before it.
    """

    def __init__(self) -> None:
        self.signal = SignalWatch()
        self.trial: Trial | None = None
        self.untreated: Snapshot | None = None
        self._uncopied = False
        # Levels of the loss before the trouble and in it, and whether something had been learned.
        self._levels: tuple[list[float], list[float], bool] | None = None
        self.trials: list[TrialRecord] = []
        # Losses of alarming steps since the last incident was closed.
        self._trouble: list[float] = []
        self.resigned = self.in_vain = self.bare = False
        self.failed: tuple[str, ...] = ()
        self._at_start = False  # Whether the trouble at hand is that of a start.

    def unlearned(self, known: Baseline) -> bool:
        """Return whether nothing has been learned since the first step at hand."""
        # A run that had learned something before the trouble is at no start, wherever it has gone back to.
        had_learned = self._levels is not None and self._levels[2]
        young = bool(known.losses.first) or known.count < 2 * THIN_HISTORY
        nothing = young and not (known.losses.learned or had_learned)
        return nothing or self.signal.dead or self._at_start

    def replaced(self, known: Baseline) -> bool:
        """Return whether the weights are what the first updates, larger than they, have made: no beginning to keep."""
        return self.trial is None and known.count < 2 * LIFE and known.updates.first_ratio > WHOLE

    def skip_used_up(self, found: GradientStatistics, *, can_skip: bool) -> Decision:
        """Return what to do about a step whose batch was used to measure by."""
        if self.trial is not None and found.loss is not None:
            self.trial.before = [found.loss]  # The network of that batch was a new one.
        cause = self.trial.cause if self.trial else ""
        return Decision((Act.SKIP,) if can_skip else (), "the batch was used to measure", cause)

    def decide(
        self,
        verdict: Verdict,
        found: GradientStatistics,
        suspects: Sequence[Suspect],
        case: Case,
        *,
        policy: Policy,
        snapshots: SnapshotStore,
    ) -> Decision:
        """Return what to do about an alarm, that of a treatment under way included.

        Args:
            verdict: The alarm.
            found: The gradients of the step.
            suspects: Whom the evidence speaks against.
            case: What is known of the run besides.
            policy: Decides.
            snapshots: The copies that there are, of which the newest is dropped where it was sick already.
        """
        known = case.baseline
        if own_verdicts.is_no_better(verdict) and self.trial is not None:
            self._end(found.step, Ending.TAKEN_BACK, known.count)
            decision = policy.next_treatment(case, verdict.reason)
        else:
            if verdict.unbounded or (self.trial is not None and self.trial.sick_from_its_beginning()):
                snapshots.discard_latest()
            if found.loss is not None:
                self._trouble = [*self._trouble, found.loss][-WINDOW:]
            if self._levels is None or (self.trial is None and not self.signal.looked):
                self._levels = self._measured(known, lost=verdict.diverges)
            decision = policy.decide(verdict, found, suspects, case)
        self._at_start = case.start
        self.signal.look_for(verdict if decision.look else None)
        return decision

    def _measured(self, known: Baseline, *, lost: bool) -> tuple[list[float], list[float], bool]:
        """Return losses from before the trouble, those of it, and whether the run had learned something before."""
        if not known.loss_tells:
            return [], [], False
        if known.losses.learned and not self.signal.dead:
            before = known.losses.best if lost else known.losses.latest(WINDOW * WINDOWS)
            return before, (known.losses.latest(RECENT) if lost else []) + self._trouble, True
        return known.losses.of_untrained, known.losses.latest(WINDOW)[1:] + self._trouble, False

    def prepare(
        self,
        decision: Decision,
        *,
        finite: bool,
        unlearned: bool,
        snapshots: SnapshotStore,
        capture: Callable[[], Snapshot | None],
    ) -> None:
        """Have the state from before a treatment copied, if one is about to be made and there is room."""
        if not ON_TRIAL & set(decision.remedies) or snapshots.keep == 0:
            return
        if decision.look or (not decision.again and unlearned and Act.ROLLBACK in decision.remedies):
            snapshots.only_first()
        # Where there was no memory for it, or nothing finite, a later copy would be of what the treatment has made.
        if self.untreated is None and not self._uncopied and decision.cause != Cause.BATCH.value:
            self.untreated = capture() if finite else None
            self._uncopied = self.untreated is None

    def open_trial(
        self, decision: Decision, done: Sequence[str], step: int, accepted: int, *, lowers_rate: bool
    ) -> None:
        """Put a treatment that was made on trial; one that only goes on (a lower rate) stays on the old one.

        What is done because of a batch is no treatment: there is nothing to be cured.

        Args:
            decision: What was decided.
            done: Names of the remedies that have made a treatment.
            step: Number of the step.
            accepted: Steps accepted so far.
            lowers_rate: Whether one of them has lowered the rate.
        """
        if not done or _goes_on(decision):
            return
        before, trouble, learned = self._levels or ([], [], False)
        # Weights that somebody had trained need not learn at once: no longer in trouble, they are cured.
        last = decision.last or not self._at_start
        self.trial = Trial(decision.cause, done, step, before=before, trouble=trouble, learned=learned, last=last)
        self.trial.lowers_rate = lowers_rate

    def keep_if_cured(self, step: int, accepted: int, untrained: float) -> bool:
        """Keep the treatment on trial if its losses say so; return whether they do."""
        if self.trial is None or (ending := self.trial.verdict()) not in (Ending.KEPT, Ending.CALM):
            return False
        better = helped(self.trial, self._levels[0] if self._levels else [], untrained, self.trials)
        self.in_vain = ending is Ending.KEPT and not better
        self._end(step, ending, accepted)
        self.untreated, self._at_start, self._uncopied = None, False, False
        return True

    def _end(self, step: int, ending: Ending, accepted: int) -> None:
        """End the trial, if there is one, and note how."""
        trial, self.trial = self.trial, None
        if trial is not None:
            self.signal.look_soon(accepted)
            # What the trial went by may be a new network's; what is told is the user's.
            before = None if self._levels is None else self._levels[0]
            self.trials = [*self.trials, trial.record(step, ending, before)]
            self.failed += trial.treatment if ending is Ending.TAKEN_BACK else ()

    def supersede(self, called_for: Decision, step: int, accepted: int) -> None:
        """End the trial under way where another treatment takes its place."""
        if ON_TRIAL & set(called_for.remedies) and not _goes_on(called_for):
            self._end(step, Ending.TAKEN_BACK, accepted)

    @property
    def under_way(self) -> bool:
        """Whether anything has been done that could be taken back."""
        return self.trial is not None or self.untreated is not None

    def take_back(self, step: int, accepted: int, *, copied: bool) -> Snapshot | None:
        """End all treatments; return the state from before them, None where that was worse than what came of them.

        Args:
            step: Number of the step.
            accepted: Steps accepted so far.
            copied: Whether there is another copy, which the run has been going on from.
        """
        trial, untreated = self.trial, self.untreated
        level = trial.level if trial is not None else self.trials[-1].after if self.trials else math.nan
        self._end(step, Ending.TAKEN_BACK, accepted)
        self.untreated, self._uncopied = None, False
        worse = bool(self._trouble) and not level_of(self._trouble) <= level
        return None if worse and copied else untreated

    def close(self) -> None:
        """Forget the trouble of the incident that is closed."""
        self.trials, self._trouble, self._levels, self._at_start = [], [], None, False
        self._uncopied = self.in_vain = False

    def state_dict(self, *, whole: Callable[[Snapshot], Snapshot | None] = lambda one: one) -> dict[str, Any]:
        """Return what a treatment under way goes by, in the same form where there is none.

        Args:
            whole: Returns a snapshot as it can be read by other processes, or None where that cannot be had.
        """
        untreated = None if self.untreated is None else whole(self.untreated)
        before, trouble, learned = self._levels or ([], [], False)
        return {
            "trial": [self.trial.state_dict()] if self.trial is not None else [],
            "trouble": list(self._trouble),
            "next_look": self.signal.next_look,
            "treating": {
                "untreated": [] if untreated is None else [plain(untreated)],
                "measured": self._levels is not None,
                "before": list(before),
                "trouble": list(trouble),
                "learned": learned,
                "resigned": self.resigned,
                "at_start": self._at_start,
                **self.signal.state_dict(),
            },
        }

    def load_state_dict(self, state: dict[str, Any], trials: Sequence[TrialRecord]) -> None:
        """Take back what :meth:`state_dict` returned, and the trials of the open incident."""
        self.trial = next(map(Trial.from_state, state["trial"]), None)
        self._trouble, self.trials = [float(v) for v in state["trouble"]], list(trials)
        found = state["treating"]
        self.untreated = next((Snapshot(**kept) for kept in found["untreated"]), None)
        self.bare = self._uncopied = self.trial is not None and self.untreated is None
        levels = [float(v) for v in found["before"]], [float(v) for v in found["trouble"]], bool(found["learned"])
        self._levels = levels if found["measured"] else None
        self.resigned, self._at_start = bool(found["resigned"]), bool(found["at_start"])
        self.signal.load_state_dict(found, state["next_look"])


def _goes_on(decision: Decision) -> bool:
    return decision.look or decision.again or decision.cause == Cause.BATCH.value
