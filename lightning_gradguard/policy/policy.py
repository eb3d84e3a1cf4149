"""From a verdict and its cause to a decision: first aid at once, and a treatment on trial where first aid does not do.

A spike is clipped, or held when clipping would follow a direction that means nothing. What fresh batches do not cure, or what the run's
own losses show, is treated: by the rows of :mod:`lightning_gradguard.policy.ladder`, one treatment at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gradguard import checks
from lightning_gradguard.attribution.cause import FEW_LAYERS, Cause, cause_of
from lightning_gradguard.attribution.probe import Signal
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import YOUNG
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy.act import EVERY
from lightning_gradguard.policy.ladder import Treatment, treatments
from lightning_gradguard.policy.trial import Trial
from lightning_gradguard.records import Decision, Form, GradientStatistics, Suspect, Verdict

GENTLE = 10.0
"""Excess over the limit below which a spike is clipped; above, its direction is not worth following."""
CURED = 2
"""Calm steps after which an alarm counts as cured: the next one is of another batch's making."""
ANEW = 24
"""Alarms in a row that ordinary updates have not brought about, after which the data or the loss are believed to have changed for good."""
BY_CHANCE = 5e-5
"""Probability of a row of NaN that is taken for no chance: one in twenty runs of a thousand steps sees such a one."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a run besides the alarm.

    Args:
        baseline: What is known of healthy steps.
        can: What can be done: acts, and the names of remedies that do none of them.
        start: Whether the run is fresh from its initialisation, has learned nothing, and can go back to its first step.
        looked: Whether the layers were measured in this very batch.
        trial: The trial under way, if any.
        signal: What becomes of the signal at the first step, where that was measured.
        vanishing: Which number of the optimizer is 0 in the precision of its parameters, in words; asked where weights are not finite.
        unlearned: Whether nothing has been learned since the first step at hand, fresh or not.
        displaced: Whether the weights have moved farther than their updates can have carried them.
    """

    baseline: Baseline
    can: Collection[str]
    start: bool = False
    looked: bool = True
    trial: Trial | None = None
    signal: Signal | None = None
    vanishing: str | None = None
    unlearned: bool = False
    displaced: bool = False


class Policy:
    """Decide which remedies answer a verdict.

    Args:
        patience: Alarming steps in a row before a treatment is tried.
        calm: Steps without alarm that end an episode.
        memory: Steps for which a past episode makes a new one *recurrent*.
        max_trials: Treatments that may be tried in the whole run; when they are spent, first aid is all that is left.
        max_skipped: Steps held in a row before the budget counts as spent; after half as many on finite numbers the data are believed to
            have changed for good.
    """

    def __init__(
        self, *, patience: int = 3, calm: int = 20, memory: int = 1000, max_trials: int = 20, max_skipped: int = 100
    ) -> None:
        self.patience = checks.whole("patience", patience, least=1)
        self.calm = checks.whole("calm", calm, least=1)
        self.memory = checks.whole("memory", memory)
        self.max_trials = checks.whole("max_trials", max_trials)
        self.max_skipped = checks.whole("max_skipped", max_skipped, least=1)
        self.trials = 0
        self._past: list[int] = []
        self._held = self._nans = self._calm = 0
        self._open_episode()

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    def _open_episode(self) -> None:
        # Alarms of the episode; alarms in a row; ordinary steps; calm steps in a row.
        self.strikes = self._row = self._ordinary = self._quiet = 0
        # Alarms of the row whose loss was not above its history.
        self._harmless = 0
        # Treatments tried for the cause at hand.
        self._cause, self._attempts = "", 0
        # Alarms that going back has ended; times that weights just gone back to exploded at once.
        self._convicted = self._untested = 0
        self._innocent = True

    @property
    def may_skip(self) -> bool:
        """Whether one more step may be held before the data are believed to have changed for good."""
        return 2 * (self._held + 1) < self.max_skipped

    def form(self, verdict: Verdict, step: int) -> Form:
        """Return the verdict's form, or ``recurrent`` when like trouble was calmed not long ago."""
        again = len(self._recent(step)) >= 2 and verdict.form in ("sudden", "drift", "divergence")
        return "recurrent" if again else verdict.form

    def _recent(self, step: int) -> list[int]:
        """Return the steps at which past episodes ended, as far as they are remembered."""
        return [end for end in self._past if step - end <= self.memory]

    # -- deciding ------------------------------------------------------------------------------------------------------

    def decide(
        self, verdict: Verdict, statistics: GradientStatistics, blame: Sequence[Suspect], case: Case
    ) -> Decision:
        """Return what to do about an alarm."""
        self._count(verdict, statistics, blame, case.baseline)
        cause = cause_of(
            verdict, blame, start=case.start, large=case.baseline.updates.ratio > LARGE, signal=case.signal
        )
        decision = self._answer(verdict, statistics, blame, cause, case)
        if not statistics.finite and "skip" not in decision.remedies:
            # Whatever is thought of it, it must not reach the weights.
            decision = dataclasses.replace(decision, remedies=("skip", *decision.remedies))
        decision = dataclasses.replace(decision, remedies=_available(decision.remedies, case.can))
        if self._held >= self.max_skipped and "skip" in decision.remedies:
            decision = Decision(("skip",), f"{self._held} steps in a row were held", cause.value, exhausted=True)
        self._note(decision)
        return decision

    def wait(
        self, verdict: Verdict, statistics: GradientStatistics, blame: Sequence[Suspect], can: Collection[str]
    ) -> Decision:
        """Return first aid to an alarm while a treatment of another optimizer is on trial: one at a time."""
        gentle = statistics.finite and verdict.form == "sudden" and verdict.excess < GENTLE
        accused = any(suspect.layer == "batch" for suspect in blame)
        cause = Cause.BATCH if accused else Cause.UNKNOWN
        reason = "first aid, while a treatment of another optimizer is on trial"
        return Decision(_available(("clip",) if gentle and not accused else ("skip",), can), reason, cause.value)

    def _count(
        self, verdict: Verdict, statistics: GradientStatistics, blame: Sequence[Suspect], known: Baseline
    ) -> None:
        self.strikes += 1
        # Weights whose gradients are finite once are not broken; large gradients may pause for a step.
        cured = CURED if statistics.finite else 1
        fresh = self._row == 0 or self._quiet >= cured
        self._row, self._harmless = (1, 0) if fresh else (self._row + 1, self._harmless)
        self._harmless += known.losses.elevated(statistics.loss) is False
        self._quiet = 0
        self._nans += not statistics.finite
        self._innocent = self._innocent and any(b.layer == "batch" for b in blame)

    def _note(self, decision: Decision) -> None:
        if "rollback" in decision.remedies:
            self._convicted += self._row  # The weights brought these about, and no data.
        self._held = self._held + 1 if "skip" in decision.remedies else 0
        # Weights that were gone back to, and that no update has touched since.
        self._untested = 0 if "skip" not in decision.remedies else self._untested + ("rollback" in decision.remedies)

    def _answer(
        self, verdict: Verdict, statistics: GradientStatistics, blame: Sequence[Suspect], cause: Cause, case: Case
    ) -> Decision:
        known = case.baseline
        if cause is Cause.BATCH:
            if statistics.finite and not self.may_skip:
                return self._accept_regime("so many large batches in a row are no accident")
            return Decision(("skip",), "the batch itself is corrupt", cause.value)
        if not statistics.finite and self._untested > 1:
            reason = (
                "weights of two times give NaN with no update made between: the data, the loss or the code is at fault"
            )
            return Decision(("skip",), reason, Cause.LOSS.value)
        if verdict.form == "cold-start" and known.count and statistics.growth is None:
            reason = "as if the first batch had never been: the optimizer would long remember it"
            # What is on trial began after that batch, and goes on.
            return Decision(("rollback",), reason, Cause.BATCH.value, again=case.trial is not None)
        if case.vanishing is not None and any(suspect.broken for suspect in blame):
            return self._treat(Cause.OPTIMIZER, f"finite gradients made weights that are not: {case.vanishing}", case)
        if cause is Cause.OPTIMIZER:
            return self._treat(cause, "neither the data nor the rate is at fault", case)
        measured = statistics.finite or statistics.growth is not None
        convicted = measured and verdict.form in ("divergence", "cold-start") and not verdict.examine
        if case.start and (convicted or self._explodes(statistics, known)):
            return self._start(cause, case)
        if cause is Cause.LAYER and (verdict.examine or not convicted) and (known.count >= YOUNG or verdict.examine):
            names = [suspect.layer for suspect in blame][:FEW_LAYERS]
            return self._treat(cause, f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} at fault", case)
        if verdict.examine:
            return Decision((), "no layer is found damaged: the data may have changed", cause.value)
        if convicted and known.count:
            return self._treat(Cause.RATE, "the run has lost what it had", case, first_aid="")
        return self._burst(verdict, statistics, blame, cause, case)

    def _explodes(self, statistics: GradientStatistics, known: Baseline) -> bool:
        """Return whether a fresh run explodes in step after step: two do where there is nothing to lose, unless data hold NaN."""
        return known.count < YOUNG and self._row >= self._needed(statistics, known)

    def _start(self, cause: Cause, case: Case) -> Decision:
        if case.trial is None and not case.looked:
            reason = "back to the first step, where every layer's gain is measured"
            return Decision(("skip", "rollback"), reason, cause.value, look=True)
        told = {
            Cause.LAYER: "a layer stands out from its first step",
            Cause.START: "the initialisation, or the scale of what it meets, is at fault as a whole",
        }
        cause = cause if cause in told else Cause.RATE
        return self._treat(cause, told.get(cause, "no layer stands out: the rate is too high"), case, first_aid="")

    def _burst(
        self, verdict: Verdict, statistics: GradientStatistics, blame: Sequence[Suspect], cause: Cause, case: Case
    ) -> Decision:
        known = case.baseline
        gentle = verdict.form == "sudden" and verdict.excess < GENTLE
        hold = "clip" if gentle and known.count >= YOUNG else "skip"
        broken = any(suspect.broken for suspect in blame)
        if self._row < self._needed(statistics, known) and not broken:
            return Decision((hold,), "first aid", cause.value)
        if self._untested and statistics.finite:
            return self._accept_regime("weights that were good explode as well: the data or the loss have changed")
        small = known.updates.ratio <= LARGE and known.count >= YOUNG and not case.displaced
        if statistics.finite and small and case.trial is None:
            if self._row >= ANEW:
                return self._accept_regime("what has come is no accident, and no update brought it")
            return Decision((hold,), "first aid: no update has brought this", cause.value)
        if statistics.finite and 2 * self._harmless > self._row:
            return Decision(("clip",), "norms are large and the loss is not: clipping is enough", cause.value)
        reason = (
            "weights that are NaN or inf stay so" if broken else "fresh batches explode too, so the weights are damaged"
        )
        return self._treat(Cause.RATE if known.updates.ratio > LARGE else Cause.UNKNOWN, reason, case, first_aid=hold)

    def _needed(self, statistics: GradientStatistics, known: Baseline) -> int:
        """Return how many alarms in a row accuse the weights: held steps leave them alone, and bad batches come in rows by chance."""
        patience = min(self.patience, 2) if known.count < YOUNG else self.patience
        if patience == 1:
            return 1
        if not statistics.finite:
            # Data that hold a NaN now and then make runs of them by chance: at two batches in five, three in a row
            # are common and eight are not. Broken weights make every batch one, and can wait.
            return max(3 * patience - 1, _row_by_chance(self._nans - self._row, self._calm))
        return max(patience, _row_by_chance(self.strikes - self._row - self._convicted, self._ordinary))

    def _accept_regime(self, reason: str) -> Decision:
        return Decision(("skip",), reason, Cause.REGIME.value)

    # -- treatments ----------------------------------------------------------------------------------------------------

    def _treat(self, cause: Cause, reason: str, case: Case, *, first_aid: str = "skip") -> Decision:
        """Return the next treatment of a cause; during the trial of a rate a lower rate; first aid where none is left."""
        trial = case.trial
        if trial is not None and trial.descents and trial.sick_from_its_beginning():
            return self._accept_regime("what two copies and a lower rate do not cure is nothing that updates have done")
        if trial is not None and trial.lowers_rate and trial.descend():
            return Decision(("skip", "rollback", "backoff"), "lost again: a lower rate", trial.cause, again=True)
        if trial is not None:
            cause = Cause(trial.cause)
        if self._cause != cause.value and not (self._attempts and case.start):
            self._cause, self._attempts = cause.value, 0
        while (found := self._treatment(case)) is not None:
            self._attempts += 1
            if set(found) & set(case.can) or set(case.can) - EVERY:
                self.trials += 1
                return Decision(("skip", *found), reason, self._cause, last=self._treatment(case) is None)
        alive = "first aid is all that is left" if self._attempts else "nothing that is switched on can treat this"
        return Decision((first_aid,) if first_aid else (), alive, cause.value, resign=True)

    def _treatment(self, case: Case) -> Treatment | None:
        if self.trials >= self.max_trials:
            return None
        ladder = treatments(Cause(self._cause), start=case.start)
        # Remedies that the ladder does not know stand in for its own where these are switched off.
        others = set(case.can) - EVERY
        rows = [row for row in ladder if others or (set(row) - {"rollback"}) & set(case.can) or row == ("rollback",)]
        return rows[self._attempts] if self._attempts < len(rows) else None

    def next_treatment(self, case: Case, reason: str) -> Decision:
        """Return what to try after a treatment that did not help."""
        decision = self._treat(Cause(self._cause or Cause.UNKNOWN.value), reason, dataclasses.replace(case, trial=None))
        return dataclasses.replace(decision, remedies=_available(decision.remedies, case.can))

    # -- resting -------------------------------------------------------------------------------------------------------

    def rest(self, step: int, *, ordinary: bool = False, trial: bool = False) -> bool:
        """Note a step without alarm; return True when that ends the episode.

        Args:
            step: Its number.
            ordinary: Whether its norm and its loss are as ever, which speaks for the weights: an alarm before it and one
                after it are the doing of two batches.
            trial: Whether a treatment is still on trial, which keeps the episode open.
        """
        self._held = self._untested = 0
        if ordinary:
            self._row = 0
            self._ordinary += 1
        self._quiet += 1
        self._calm += 1
        if self.strikes == 0 or self._quiet < self.calm or trial:
            return False
        self.end_episode(step)
        return True

    def end_episode(self, step: int) -> None:
        """Close the episode at ``step``, and remember it unless batches alone were at fault."""
        if not self._innocent:
            self._past = [*self._recent(step), step]
        self._open_episode()

    def state_dict(self) -> dict[str, Any]:
        """Return the episode under way, the past ones and what is left of the budget."""
        return {k: v if not isinstance(v, list) else list(v) for k, v in vars(self).items() if k in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        for key in _STATE:
            setattr(self, key, state[key])


_STATE = (
    "strikes",
    "trials",
    "_row",
    "_ordinary",
    "_harmless",
    "_cause",
    "_attempts",
    "_convicted",
    "_past",
    "_held",
    "_nans",
    "_calm",
    "_quiet",
    "_innocent",
    "_untested",
)


def _row_by_chance(bad: int, good: int) -> int:
    """Return how many bad batches in a row the data alone may make, by their share before this row."""
    share = bad / (bad + good) if bad > 0 else 0.0
    return math.ceil(math.log(BY_CHANCE) / math.log(share)) if 0.0 < share < 1.0 else 0


def _available(remedies: Sequence[str], can: Collection[str]) -> tuple[str, ...]:
    """Drop what is switched off; a step that was to be held or clipped falls back to the other of the two.

    Remedies that the ladder does not know come last, where a treatment is called for, or would be if it were switched on: first aid to a
    single batch stays without consequences.
    """
    chosen = [r for r in remedies if r in can]
    if "skip" in remedies and "skip" not in can and "clip" in can:
        chosen.append("clip")
    if "clip" in remedies and "clip" not in can and "skip" in can:
        chosen.append("skip")
    if not {"clip", "skip"}.issuperset(remedies):
        chosen += sorted(set(can) - EVERY)  # in one order on all processes
    return tuple(chosen)
