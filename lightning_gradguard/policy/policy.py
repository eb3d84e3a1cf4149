"""From a verdict and its cause to a decision: first aid at once, and a treatment on trial where first aid does not do.

One idea: each alarm has one answer. A spike is clipped, or skipped where clipping would follow a direction that means
nothing. What fresh batches do not cure, or what the run's own losses show, is treated: by the rows of
:mod:`lightning_gradguard.policy.ladder`, one treatment at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lightning_gradguard import checks
from lightning_gradguard.attribution.cause import FEW_LAYERS, Cause, cause_of
from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.detectors.bad_start import LARGEST
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import THIN_HISTORY
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy.act import EVERY, FIRST_AID, Act
from lightning_gradguard.policy.attempts import Attempts, accept_regime
from lightning_gradguard.policy.case import Case
from lightning_gradguard.policy.episode import Episode
from lightning_gradguard.policy.ladder import AT_START, available
from lightning_gradguard.records import Decision, Form, GradientStatistics, Suspect, Verdict

ANEW = 24
"""Alarms in a row that no update has brought about, after which data or loss are believed to have changed for good."""


class Policy:
    """Decide which remedies answer a verdict.

    Args:
        patience: Alarming steps in a row before a treatment is tried.
        calm: Steps without alarm that end an episode.
        memory: Steps for which a past episode makes a new one *recurrent*.
        max_trials: Treatments that may be tried in the whole run; when they are spent, first aid is all that is left.
        max_skipped: Steps skipped in a row with which the budget counts as spent; after half as many on finite numbers
            the data are believed to have changed for good.
    """

    def __init__(
        self, *, patience: int = 3, calm: int = 20, memory: int = 1000, max_trials: int = 20, max_skipped: int = 100
    ) -> None:
        self.patience = checks.whole("patience", patience, least=1)
        self.calm = checks.whole("calm", calm, least=1)
        self.memory = checks.whole("memory", memory)
        self.max_trials = checks.whole("max_trials", max_trials)
        self.max_skipped = checks.whole("max_skipped", max_skipped, least=1)
        self._episode, self._attempts = Episode(), Attempts(self.max_trials)

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    @property
    def strikes(self) -> int:
        """Alarms of the episode under way."""
        return self._episode.strikes

    @property
    def trials(self) -> int:
        """Treatments that were tried in the whole run."""
        return self._attempts.trials

    @property
    def passed(self) -> bool:
        """Whether any step of the run has gone without alarm."""
        return self._episode.calm > 0

    @property
    def accuses(self) -> bool:
        """Whether the newest step was alarming, and batches alone are not at fault."""
        return self._episode.row > 0 and self._episode.quiet == 0 and not self._episode.innocent

    @property
    def may_skip(self) -> bool:
        """Whether one more step may be skipped before the data are believed to have changed for good."""
        return 2 * (self._episode.skipped + 1) < self.max_skipped

    def form(self, verdict: Verdict, step: int) -> Form:
        """Return the verdict's form, or ``recurrent`` when like trouble was calmed not long ago."""
        again = verdict.can_recur and len(self._episode.recent(step, self.memory)) >= 2
        return "recurrent" if again else verdict.form

    def decide(
        self, verdict: Verdict, statistics: GradientStatistics, suspects: Sequence[Suspect], case: Case
    ) -> Decision:
        """Return what to do about an alarm."""
        self._episode.count(statistics, suspects, case.baseline)
        large = case.baseline.updates.ratio > LARGE
        cause = cause_of(verdict, suspects, start=case.start, large=large, signal=case.signal)
        decision = self._answer(verdict, statistics, suspects, cause, case)
        aid = FIRST_AID if statistics.finite else frozenset({Act.SKIP})  # It must not pass.
        if not statistics.norm <= LARGEST and aid.isdisjoint(decision.remedies):
            decision = dataclasses.replace(decision, remedies=(Act.SKIP, *decision.remedies))
        # What accompanies the treatments waits until the layers have been measured.
        can = EVERY & {*case.can} if decision.look else case.can
        decision = dataclasses.replace(decision, remedies=available(decision.remedies, can))
        skipped = self._episode.skipped + 1  # With this one, if it is skipped.
        if skipped >= self.max_skipped and Act.SKIP in decision.remedies:
            decision = Decision((Act.SKIP,), f"{skipped} steps in a row were skipped", cause.value, exhausted=True)
        self._episode.note(decision)
        return decision

    def _answer(
        self,
        verdict: Verdict,
        statistics: GradientStatistics,
        suspects: Sequence[Suspect],
        cause: Cause,
        case: Case,
    ) -> Decision:
        known = case.baseline
        if verdict.unbounded:  # At any rate it would fall on from there.
            back = (Act.SKIP, Act.ROLLBACK)
            return Decision(back, "no lower bound of the loss is in sight", Cause.LOSS.value, exhausted=True)
        if case.stale and Act.CLEAR in case.can:
            return self._attempts.treat(Cause.STALE, "each update repeats all before it", case, first_aid=None)
        of_earlier = cause is Cause.BATCH or statistics.growth is None
        if verdict.of_a_start and known.count and statistics.finite and of_earlier:
            reason = "as if such a batch had never been: the optimizer would long remember it"
            # It is said of an earlier batch, or of this one too, which must not pass then.
            acts = (Act.ROLLBACK,) if verdict.value > statistics.norm else (Act.SKIP, Act.ROLLBACK)
            return Decision(acts, reason, Cause.BATCH.value)
        if cause is Cause.BATCH:
            if statistics.finite and not self.may_skip:
                return accept_regime("so many large batches in a row are no accident")
            return Decision((Act.SKIP,), "the batch itself is corrupt", cause.value)
        if case.aside:
            return Decision((Act.SKIP,), case.aside, Cause.LAYER.value)
        broken = any(suspect.broken for suspect in suspects)
        if not statistics.finite and (decision := self._of_loss(cause, broken=broken)) is not None:
            return decision
        if cause is Cause.OPTIMIZER or (broken and case.odd is not None):
            return self._attempts.treat(Cause.OPTIMIZER, "neither the data nor the rate is at fault", case)
        convicted = verdict.against_the_run and (statistics.finite or statistics.growth is not None)
        if case.start and (convicted or self._explodes(statistics, known)):
            return self._start(cause, case)
        if cause is Cause.LAYER and (verdict.examine or (not convicted and known.count >= THIN_HISTORY)):
            names = [suspect.layer for suspect in suspects if suspect.is_layer][:FEW_LAYERS]
            told = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} at fault"
            return self._attempts.treat(cause, told, case)
        if verdict.examine:
            if case.displaced:
                return self._attempts.treat(Cause.UNKNOWN, "no update can have moved the weights so far", case)
            return Decision((), "no layer is found damaged: the data may have changed", cause.value)
        if convicted and known.count:
            return self._attempts.treat(Cause.RATE, "the run has lost what it had", case, first_aid=None)
        return self._burst(verdict, statistics, suspects, cause, case)

    def _of_loss(self, cause: Cause, *, broken: bool) -> Decision | None:
        """Answer gradients that are not finite where the loss or code must be at fault; None where it need not be."""
        told = cause if cause in (Cause.LAYER, Cause.ACTIVATION) else Cause.LOSS
        # Where the loss was seen to be at fault, and is as ever, weights are not suspected however long it lasts.
        lasts = self._episode.row >= ANEW and cause is not Cause.LOSS
        if not broken and not lasts and self._episode.row < 2 * self._episode.harmless:
            reason = "the loss is as ever and its gradients are not finite: skipping such batches is enough"
            return Decision((Act.SKIP,), reason, told.value)
        if self._episode.untested > 1:
            reason = "weights of two times give NaN with no update between: the data, the loss or the code is at fault"
            return Decision((Act.SKIP,), reason, told.value)
        return None

    def _explodes(self, statistics: GradientStatistics, known: Baseline) -> bool:
        """Return whether a young run, which has little to lose, explodes in step after step."""
        return known.count < THIN_HISTORY and self._episode.accuses_weights(statistics, known, self.patience)

    def _start(self, cause: Cause, case: Case) -> Decision:
        if case.trial is None and not case.looked and not self._attempts.spent(case):
            reason = "back to the first step, where every layer's gain is measured"
            return Decision((Act.SKIP, Act.ROLLBACK), reason, cause.value, look=True)
        cause = cause if cause in AT_START else Cause.RATE
        return self._attempts.treat(cause, AT_START[cause], case, first_aid=None)

    def _burst(
        self, verdict: Verdict, statistics: GradientStatistics, suspects: Sequence[Suspect], cause: Cause, case: Case
    ) -> Decision:
        """Answer trouble of which nothing but its length tells whether the weights are at fault."""
        known, episode = case.baseline, self._episode
        aid = Act.CLIP if verdict.gentle and known.count >= THIN_HISTORY else Act.SKIP
        broken = any(suspect.broken for suspect in suspects)
        if not broken and not episode.accuses_weights(statistics, known, self.patience):
            return Decision((aid,), "first aid", cause.value)
        if episode.untested and statistics.finite:
            return accept_regime("weights that were good explode as well: the data or the loss have changed")
        small = case.foretold and known.updates.ratio <= LARGE and not case.displaced and not case.searching
        if statistics.finite and small and known.count >= THIN_HISTORY and case.trial is None:
            if episode.row >= ANEW:
                # Weights from before it tell: where they explode as well, the data or the loss have changed.
                asked = "what has come is no accident, and no update brought it: weights from before it are asked"
                decision = self._attempts.treat(Cause.UNKNOWN, asked, case, first_aid=aid)
                return accept_regime(asked) if decision.resign else decision
            return Decision((aid,), "first aid: no update has brought this", cause.value)
        if statistics.finite and 2 * episode.harmless > episode.row:
            return Decision((Act.CLIP,), "norms are large and the loss is not: clipping is enough", cause.value)
        reason = (
            "weights that are NaN or inf stay so" if broken else "fresh batches explode too, so the weights are damaged"
        )
        cause = cause if cause in (Cause.LOSS, Cause.ACTIVATION) else Cause.UNKNOWN
        cause = Cause.RATE if known.updates.ratio > LARGE or case.searching else cause
        return self._attempts.treat(cause, reason, case, first_aid=aid)

    def measured(self, verdict: Verdict, suspects: Sequence[Suspect], case: Case, signal: Signal | None) -> Decision:
        """Return what is tried at a start for what was measured at its first step, where nobody goes back there."""
        case = dataclasses.replace(case, looked=True, signal=signal)
        large = case.baseline.updates.ratio > LARGE
        decision = self._start(cause_of(verdict, suspects, start=True, large=large, signal=signal), case)
        return dataclasses.replace(decision, remedies=available(decision.remedies, case.can))

    def next_treatment(self, case: Case, reason: str) -> Decision:
        """Return what to try after a treatment that did not help."""
        trial, cause = case.trial, Cause(self._attempts.cause or Cause.UNKNOWN.value)
        decision = self._attempts.treat(cause, reason, dataclasses.replace(case, trial=None))
        slower = Act.BACKOFF in decision.remedies or decision.resign
        small = case.baseline.updates.ratio <= LARGE and not case.searching
        if slower and trial is not None and trial.no_cure and small:
            return accept_regime("weights that were good fare as badly, and no update was large: the data have changed")
        return dataclasses.replace(decision, remedies=available(decision.remedies, case.can))

    def rest(self, step: int, *, ordinary: bool = False, trial: bool = False) -> bool:
        """Note a step without alarm; return True when that ends the episode.

        Args:
            step: Its number.
            ordinary: Whether its norm and its loss are as ever, which speaks for the weights: an alarm before it and
                one after it are the doing of two batches.
            trial: Whether a treatment is still on trial, which keeps the episode open.
        """
        self._episode.rest(ordinary=ordinary)
        if self._episode.strikes == 0 or self._episode.quiet < self.calm or trial:
            return False
        self.end_episode(step)
        return True

    def end_episode(self, step: int) -> None:
        """Close the episode at ``step``, and remember it unless batches alone were at fault."""
        self._episode.close(step, self.memory)
        self._attempts.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the episode under way, the past ones and what is left of the budget."""
        return {**self._episode.state_dict(), **self._attempts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._episode.load_state_dict(state)
        self._attempts.load_state_dict(state)
