"""A treatment from its decision to its end: on trial, kept, or taken back.

What is decided is done elsewhere; here stands what is known of the trouble, and of what was tried against it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from lightning_gradguard.attribution.probe import Signal
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import RECENT, YOUNG
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy import Case, Policy, Trial
from lightning_gradguard.policy.act import ON_TRIAL, Act
from lightning_gradguard.policy.trial import WINDOW, WINDOWS, level_of
from lightning_gradguard.records import (
    Decision,
    GradientStatistics,
    Suspect,
    TrialRecord,
    Verdict,
    to_json,
    verdict_from_json,
)
from lightning_gradguard.snapshots.snapshot import Snapshot, plain
from lightning_gradguard.snapshots.store import SnapshotStore

USED_UP = "initialize"
"""Detector of a batch that was used to measure the signal."""
LIFE = 40
"""Accepted steps after which a run that does not move is asked for the first time whether its output depends on its input; then after
twice as many each time."""


class Treatment:
    """Know what is being tried against the trouble of one optimizer, and how what was tried has ended.

    Attributes:
        trial: The treatment on trial, or None.
        untreated: The state from before it.
        trials: How the trials of the open incident have ended.
        growth: Growth of the signal at the first step, where its layers were measured.
        dead: Whether the output was found not to depend on the input.
        resigned: Whether all treatments have failed, so that only first aid is left.
    """

    def __init__(self) -> None:
        self.trial: Trial | None = None
        self.untreated: Snapshot | None = None
        self._uncopied = False
        # Levels of the loss before the trouble and in it, and whether something had been learned.
        self._levels: tuple[list[float], list[float], bool] | None = None
        self.trials: list[TrialRecord] = []
        # Losses of alarming steps since the last incident was closed.
        self._trouble: list[float] = []
        self.growth: float | None = None
        # Accepted steps after which to look whether the output still depends on the input.
        self._next_look = LIFE
        self.dead = False
        # Whether the layers are measured in the batch at hand, before anything is treated; whether they were in the last one.
        self.looking: Verdict | None = None
        self._looked = False
        # What becomes of the signal in a fresh network, where it was measured in this batch.
        self._signal: Signal | None = None
        self.resigned = False
        # Whether the trouble at hand is that of a start.
        self._at_start = False

    # -- what is seen of the signal ------------------------------------------------------------------------------------

    def start(self, growth: float) -> None:
        """Note how the signal grows from input to output at the first step."""
        self.growth = growth

    def see(self, signal: Signal | None) -> None:
        """Note what became of the signal in this batch, if it was measured."""
        self._signal = signal

    def find(self, *, dead: bool) -> None:
        """Note whether the output depends on the input."""
        self.dead = dead

    def time_to_look(self, accepted: int) -> bool:
        """Return whether to look, after so many accepted steps, if the output still depends on the input; then after twice as many."""
        if accepted < self._next_look:
            return False
        self._next_look *= 2
        return True

    # -- a step under treatment ----------------------------------------------------------------------------------------

    def looked_at(self) -> Verdict | None:
        """Return the alarm that had the layers measured in this batch, once."""
        verdict, self.looking = self.looking, None
        return verdict

    def alarm(self, found: GradientStatistics, update_ratio: float) -> Verdict | None:
        """Return the alarm that the trial under way raises at a step, or None."""
        trial = self.trial
        if trial is None or not found.finite:
            return None
        if trial.lowers_rate and trial.lost(found.loss):
            told = f"loss {found.loss:.3g}, the third in a row far above those before: lost again"
            return Verdict("divergence", "trial", found.loss or 0.0, trial.level, told)
        trial.observe(found.loss)
        if trial.verdict(large=update_ratio > LARGE) == "too fast":
            told = f"loss {trial.level:.3g} is no better, and updates are {update_ratio:.2g} x the weights"
            return Verdict("divergence", "trial", trial.level, level_of(trial.before), told)
        if trial.verdict() == "taken back":
            reason = f"{' and '.join(trial.treatment)} made nothing better: loss {trial.level:.3g}"
            return Verdict("divergence", "trial", trial.level, level_of(trial.trouble), reason, examine=True)
        return None

    # -- decision ------------------------------------------------------------------------------------------------------

    def unlearned(self, known: Baseline) -> bool:
        """Return whether nothing has been learned since the first step at hand."""
        # Who had learned something before the trouble is at no start, wherever it has gone back to.
        had_learned = self._levels is not None and self._levels[2]
        nothing = not known.losses.learned and not had_learned and (bool(known.losses.first) or known.count < 2 * YOUNG)
        return nothing or self.dead or self._at_start

    def case(self, known: Baseline, can: Collection[str], *, fresh: bool, looked: bool) -> Case:
        """Return what the policy has to know of a run besides the alarm."""
        unlearned = self.unlearned(known)
        return Case(known, can, unlearned and fresh, looked, self.trial, self._signal, unlearned=unlearned)

    def decide(
        self,
        verdict: Verdict,
        found: GradientStatistics,
        suspects: Sequence[Suspect],
        *,
        policy: Policy,
        known: Baseline,
        can: Collection[str],
        fresh: bool,
        snapshots: SnapshotStore,
        vanishing: str | None = None,
        displaced: bool = False,
    ) -> Decision:
        """Return what to do about an alarm, that of a treatment under way included.

        Args:
            verdict: The alarm.
            found: The gradients of the step.
            suspects: Whom the evidence speaks against.
            policy: Decides.
            known: What a healthy step looks like.
            can: What can be done.
            fresh: Whether the run began with weights that nobody had trained.
            snapshots: The copies that there are, of which the newest is dropped where it was sick already.
            vanishing: Which number of the optimizer is 0 in the precision of its parameters; asked where weights are not finite.
            displaced: Whether the weights have moved farther than their updates can have carried them.
        """
        if verdict.detector == USED_UP:
            if self.trial is not None and found.loss is not None:
                self.trial.before = [found.loss]  # The network of that batch was a new one.
            skip = ("skip",) if Act.SKIP in can else ()
            return Decision(skip, "the batch was used to measure", self.trial.cause if self.trial else "")
        here = self.case(known, can, fresh=fresh, looked=self._looked)
        here = dataclasses.replace(here, vanishing=vanishing, displaced=displaced)
        if verdict.detector == "trial" and verdict.examine and self.trial is not None:
            self._end(found.step, "taken back", known.count)
            decision = policy.next_treatment(here, verdict.reason)
        else:
            if self.trial is not None and self.trial.sick_from_its_beginning():
                snapshots.discard_latest()
            if found.loss is not None:
                self._trouble = [*self._trouble, found.loss][-WINDOW:]
            if self._levels is None or (self.trial is None and not self._looked):
                self._levels = self._measured(known, lost=verdict.form == "divergence")
            decision = policy.decide(verdict, found, suspects, here)
        self._looked = False
        self._at_start = here.start
        if decision.look:
            self.looking, self._looked = verdict, True
        return decision

    def _measured(self, known: Baseline, *, lost: bool) -> tuple[list[float], list[float], bool]:
        """Return losses from before the trouble, those of the trouble, and whether the run had learned something before."""
        if known.losses.learned and not self.dead:
            before = known.losses.best if lost else known.losses.latest(WINDOW * WINDOWS)
            return before, (known.losses.latest(RECENT) if lost else []) + self._trouble, True
        return known.losses.of_untrained, known.losses.latest(WINDOW)[1:] + self._trouble, False

    # -- the treatment itself ------------------------------------------------------------------------------------------

    def prepare(
        self,
        decision: Decision,
        *,
        finite: bool,
        unlearned: bool,
        snapshots: SnapshotStore,
        capture: Callable[[], Snapshot | None],
    ) -> None:
        """Make ready for a treatment, if one is about to be made: have the state from before it copied, where memory allows it."""
        if not ON_TRIAL & set(decision.remedies) or snapshots.keep == 0:
            return
        if decision.look or (not decision.again and unlearned and Act.ROLLBACK in decision.remedies):
            snapshots.only_first()
        # Where there was no memory for it, a later copy would be of what the treatment has made.
        if self.untreated is None and finite and not self._uncopied:
            self.untreated = capture()
            self._uncopied = self.untreated is None

    def open_trial(
        self, decision: Decision, done: Sequence[str], step: int, accepted: int, *, lowers_rate: bool
    ) -> None:
        """Put a treatment that was made on trial; one that only goes on (a lower rate) stays on the old one.

        Args:
            decision: What was decided.
            done: Names of the remedies that have made a treatment.
            step: Number of the step.
            accepted: Steps accepted so far.
            lowers_rate: Whether one of them has lowered the rate.
        """
        if not done or decision.look or decision.again:
            return
        before, trouble, learned = self._levels or ([], [], False)
        self._end(step, "taken back", accepted)
        self.trial = Trial(
            decision.cause, done, step, before=before, trouble=trouble, learned=learned, last=decision.last
        )
        self.trial.lowers_rate = lowers_rate

    def keep_if_cured(self, step: int, accepted: int) -> bool:
        """Keep the treatment on trial if its losses say so; return whether they do."""
        if self.trial is None or (outcome := self.trial.verdict()) not in ("kept", "calm"):
            return False
        self._end(step, outcome, accepted)
        self.untreated, self._at_start, self._uncopied = None, False, False
        return True

    def _end(self, step: int, outcome: str, accepted: int) -> None:
        """End the trial, if there is one, and note how."""
        trial, self.trial = self.trial, None
        if trial is None:
            return
        self._next_look = accepted + LIFE
        self.trials = [*self.trials, trial.record(step, outcome)]

    @property
    def under_way(self) -> bool:
        """Whether anything has been done that could be taken back."""
        return self.trial is not None or self.untreated is not None

    def take_back(self, step: int, accepted: int, *, copied: bool) -> Snapshot | None:
        """End all treatments; return the state from before them, or None where that was worse than what they have come to.

        Args:
            step: Number of the step.
            accepted: Steps accepted so far.
            copied: Whether there is another copy, which the run has been going on from.
        """
        trial, untreated = self.trial, self.untreated
        level = trial.level if trial is not None else self.trials[-1].after if self.trials else math.nan
        self._end(step, "taken back", accepted)
        self.untreated, self._uncopied = None, False
        worse = bool(self._trouble) and not level_of(self._trouble) <= level
        return None if worse and copied else untreated

    def resign(self, *, resigned: bool) -> None:
        """Note whether all treatments have failed."""
        self.resigned = resigned

    def go_back(self, *, look: bool) -> None:
        """Forget what was measured of weights that were gone back from; that of the first ones holds when layers are looked at there."""
        self.growth, self.dead = self.growth if look else None, False

    def redraw(self) -> None:
        """Forget how the signal grew in weights that are there no more."""
        self.growth = None

    def close(self) -> None:
        """Forget the trouble of the incident that is closed."""
        self.trials, self._trouble, self._levels, self._at_start = [], [], None, False
        self._uncopied = False

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self, *, whole: Callable[[Snapshot], Snapshot | None] = lambda one: one) -> dict[str, Any]:
        """Return what a treatment under way goes by, in the same form where there is none; ``whole`` as in the store of snapshots."""
        untreated = None if self.untreated is None else whole(self.untreated)
        before, trouble, learned = self._levels or ([], [], False)
        signals = [] if self._signal is None else [self._signal]
        return {
            "trial": [self.trial.state_dict()] if self.trial is not None else [],
            "trouble": list(self._trouble),
            "next_look": self._next_look,
            "treating": {
                "untreated": [] if untreated is None else [plain(untreated)],
                "measured": self._levels is not None,
                "before": list(before),
                "trouble": list(trouble),
                "learned": learned,
                "growth": [self.growth] if self.growth is not None else [],
                "signal": [v for s in signals for v in (s.source, s.growth, s.variation) if v is not None],
                "looking": [dataclasses.asdict(self.looking)] if self.looking is not None else [],
                "looked": self._looked,
                "dead": self.dead,
                "resigned": self.resigned,
                "at_start": self._at_start,
            },
        }

    def load_state_dict(self, state: dict[str, Any], trials: Sequence[TrialRecord]) -> None:
        """Take back what :meth:`state_dict` returned, and the trials of the open incident."""
        self.trial = next(map(Trial.from_state, state["trial"]), None)
        self._trouble, self._next_look = [float(v) for v in state["trouble"]], int(state["next_look"])
        self.trials = list(trials)
        found = state["treating"]
        self.untreated = next((Snapshot(**kept) for kept in found["untreated"]), None)
        levels = [float(v) for v in found["before"]], [float(v) for v in found["trouble"]], bool(found["learned"])
        self._levels = levels if found["measured"] else None
        self.growth = next(map(float, found["growth"]), None)
        source, growth, variation, *_ = [*map(float, found["signal"]), None, None, None]
        self._signal = Signal(source, growth, variation) if source is not None and growth is not None else None
        self.looking = next((verdict_from_json(to_json(verdict)) for verdict in found["looking"]), None)
        self._looked, self.dead = bool(found["looked"]), bool(found["dead"])
        self.resigned, self._at_start = bool(found["resigned"]), bool(found["at_start"])
