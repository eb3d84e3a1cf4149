"""The treatments that were tried, for the cause at hand and in the whole run, and the one that comes next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy.act import Act
from lightning_gradguard.policy.case import Case
from lightning_gradguard.policy.ladder import SLOWER, Treatment, available, possible, strangers
from lightning_gradguard.records import Decision, GradientStatistics, Suspect, Verdict


class Attempts:
    """Take the treatments of a cause in their order, while the budget lasts.

    Args:
        most: Treatments that may be tried in the whole run.

    Attributes:
        trials: Treatments tried in the whole run.
        cause: The cause at hand; empty where nothing was treated in this episode.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.trials = 0
        self.forget()

    def forget(self) -> None:
        """Forget the cause at hand, and what was tried for it."""
        self.cause, self._tried = "", 0

    def treat(self, cause: Cause, reason: str, case: Case, first_aid: Act | None = Act.SKIP) -> Decision:
        """Return the next treatment: a lower rate while one is on trial, first aid where no treatment is left.

        Whatever asks for one, an optimizer with an odd number has that mended first.
        """
        trial = case.trial
        if trial is not None and trial.descents and trial.sick_from_its_beginning():
            return accept_regime("what two copies and a lower rate do not cure is nothing that updates have done")
        # Before the losses are forgotten that tell.
        sick = trial is not None and trial.of_a_sick_copy
        # A network drawn anew that small updates have lost again is not lost by their rate.
        small = case.foretold and case.baseline.updates.ratio <= LARGE
        blameless = small and trial is not None and Act.INITIALIZE in trial.treatment
        if trial is not None and trial.lowers_rate and trial.tested and not blameless and trial.descend():
            if sick:
                older = (Act.SKIP, Act.ROLLBACK)
                return Decision(older, "the copy was sick already: an older one", trial.cause, again=True)
            slower = (Act.SKIP, Act.ROLLBACK, Act.BACKOFF)
            return Decision(slower, "lost again: a lower rate", trial.cause, again=True)
        if trial is not None:
            cause = Cause(trial.cause)
        elif case.odd is not None and cause is not Cause.STALE and not (self._tried and case.start):
            # What the optimizer was given makes every other treatment harder to judge.
            cause, reason = Cause.SETTINGS, case.odd
        if self.cause != cause.value and not (self._tried and case.start):
            self.cause, self._tried = cause.value, 0
        while (found := self._next(case)) is not None:
            self._tried += 1
            untested = trial is not None and not trial.tested and Act.INITIALIZE in trial.treatment
            if untested and found == SLOWER and not case.passed:
                continue  # Neither what was drawn here nor what the user drew can take a batch: no rate is to blame.
            if set(found) & set(case.can) or strangers(case.can):
                self.trials += 1
                # What is odd is wrong whether or not the run learns at once: to be out of the trouble is enough.
                last = Act.TUNE in found or self._next(case) is None
                return Decision((Act.SKIP, *found), reason, self.cause, last=last)
        alive = "first aid is all that is left" if self._tried else "nothing that is switched on can treat this"
        return Decision(() if first_aid is None else (first_aid,), alive, cause.value, resign=True)

    def spent(self, case: Case) -> bool:
        """Return whether all treatments of the cause at hand have been tried."""
        return bool(self._tried) and self._next(case) is None

    def _next(self, case: Case) -> Treatment | None:
        if self.trials >= self._most:
            return None
        return next(iter(possible(Cause(self.cause), case.can, start=case.start)[self._tried :]), None)

    def state_dict(self) -> dict[str, Any]:
        """Return what was tried, by the keys that checkpoints have for it."""
        return {"trials": self.trials, "_cause": self.cause, "_attempts": self._tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.trials, self.cause, self._tried = state["trials"], state["_cause"], state["_attempts"]


def first_aid(
    verdict: Verdict, statistics: GradientStatistics, suspects: Sequence[Suspect], can: Collection[str]
) -> Decision:
    """Return first aid to an alarm while a treatment of another optimizer is on trial: one at a time."""
    accused = any(suspect.is_batch for suspect in suspects)
    aid = Act.CLIP if statistics.finite and verdict.gentle and not accused else Act.SKIP
    reason = "first aid, while a treatment of another optimizer is on trial"
    return Decision(available((aid,), can), reason, (Cause.BATCH if accused else Cause.UNKNOWN).value)


def accept_regime(reason: str) -> Decision:
    """Return what is done where data, loss or task have changed for good: skip one step more, and learn all anew."""
    return Decision((Act.SKIP,), reason, Cause.REGIME.value)
