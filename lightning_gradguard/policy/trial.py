"""A treatment on trial. One idea: it is kept if the losses are the better for it, else taken back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_gradguard.history.level import QUICK, leaps, level_of
from lightning_gradguard.history.ranks import chance_of_lower
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy.act import Act
from lightning_gradguard.policy.ending import Ending
from lightning_gradguard.records import TrialRecord

WINDOW = 16
"""Accepted losses that are compared at a time."""
WINDOWS = 4
"""Windows after which a treatment that has made no difference is taken back."""
CHANCE = 0.01
"""Probability, by chance, of a difference that is taken for one."""
PATIENT = 2
"""Windows without a cure after which a rate whose updates still replace weights is lowered once more."""
MOST_DESCENTS = 10
"""Times that one trial may lower the rate: each time to a quarter at most, so a millionfold at least."""
FIRST = 9
"""Losses at the beginning of a fresh run that tell what an untrained model has."""
OF_THEIR_KIND = 0.9
"""Share of the losses before the trouble above which a single one is not of their kind."""
LEARNED = 0.7
"""Share of the untrained loss at which nobody need ask for ranks whether something was learned."""


class Trial:
    """Follow the losses of one optimizer after a treatment.

    Args:
        cause: What was found to be at fault.
        treatment: Names of the remedies.
        step: Step at which it began.
        before: Accepted losses from before the trouble, newest last. Of a run that had learned nothing those that may
            be of untrained weights; once the network is drawn anew, the first loss of the new one.
        trouble: Losses from the trouble until the treatment.
        learned: Whether the run had learned something before.
        last: Whether it is enough to be out of the trouble: no other treatment is left, or none may draw anything anew.

    Attributes:
        lowers_rate: Whether one of the remedies lowers the rate; known by the remedy, whatever its name.
    """

    def __init__(
        self,
        cause: str,
        treatment: Sequence[str],
        step: int,
        *,
        before: Iterable[float] = (),
        trouble: Iterable[float] = (),
        learned: bool = False,
        last: bool = False,
    ) -> None:
        self.cause, self.treatment, self.step = cause, tuple(treatment), step
        self.before, self.trouble = list(before)[-WINDOW * WINDOWS :], list(trouble)[-WINDOW:]
        self.learned, self.last = learned, last
        self.lowers_rate = Act.BACKOFF in self.treatment
        self.losses: list[float] = []
        self.unmeasured = self.large = 0
        self.descents = 0

    @property
    def tested(self) -> bool:
        """Whether an update was made since it began: before that nothing is the rate's doing."""
        return bool(self.losses or self.unmeasured or self.descents)

    @property
    def repairs(self) -> bool:
        """Whether single layers of a network that had learned nothing were mended, and no step was made since."""
        return not self.learned and not self.tested and Act.REINITIALIZE in self.treatment

    @property
    def has_just_begun(self) -> bool:
        """Whether the newest losses are not all its own: those before it speak against the old rate."""
        return len(self.losses) < QUICK

    @property
    def blind(self) -> bool:
        """Whether no loss from before it is a measure: it is kept if no alarm comes."""
        return not (self.before or self.trouble)

    def often_large(self, ratio: float) -> bool:
        """Note the size of an update, where it was measured; return whether several would have replaced weights.

        Those count under a loss that is no better than the first one after going back.
        """
        self.large += ratio > LARGE and bool(self.losses) and self.losses[-1] >= self.losses[0]
        return self.large >= QUICK

    def descend(self) -> bool:
        """Begin anew at a lower rate; return False if that was done too often already."""
        self.descents += 1
        self.losses.clear()
        self.unmeasured = self.large = 0
        return self.descents <= MOST_DESCENTS

    def observe(self, loss: float | None) -> None:
        """Take in the loss of an accepted step, which tells nothing where none from before it does."""
        if loss is None or self.blind:
            self.unmeasured += 1
        else:
            self.losses.append(loss)

    def lost(self, loss: float | None) -> bool:
        """Return whether the run is being lost again: three losses in a row lie above the window, twice its level."""
        if loss is None:
            return False
        now = [*self.losses[1 - QUICK :], loss]
        earlier = self.losses[: 1 - QUICK][-WINDOW:]
        if len(now) < QUICK:
            return False
        if len(earlier) < FIRST:
            # The first losses after going back come from the copy and not from the rate, the very first from it alone;
            # a single one that is not positive tells no scale.
            untrained = [*self.before, *self.losses[:1]]
            earlier = untrained if not self.learned and min(untrained) > 0.0 else []
        return leaps(now, earlier)

    def sick_from_its_beginning(self) -> bool:
        """Return whether the first losses after going back were as bad as the trouble: the copy was sick already."""
        return self.learned and chance_of_lower(self.before, self.losses[:FIRST]) < CHANCE

    @property
    def of_a_sick_copy(self) -> bool:
        """Whether the very first loss after going back, which no update has touched, speaks against the copy too."""
        usual = sorted(self.before)[: math.ceil(OF_THEIR_KIND * len(self.before))]
        return bool(self.losses and usual) and self.losses[0] > usual[-1] and self.sick_from_its_beginning()

    @property
    def no_cure(self) -> bool:
        """Whether weights from before the trouble, put back, have fared as badly as the trouble from their first step.

        With the rate as it was nothing else has changed, so more losses would tell no more.
        """
        put_back = self.learned and not self.lowers_rate and len(self.losses) >= FIRST
        return put_back and level_of(self.losses[:FIRST]) >= level_of(self.trouble) and self.sick_from_its_beginning()

    @property
    def window(self) -> list[float]:
        """The newest losses, as many as are compared."""
        return self.losses[-WINDOW:]

    @property
    def level(self) -> float:
        """Median of :attr:`window`; NaN of nothing."""
        return statistics.median(self.window) if self.losses else math.nan

    def verdict(self, *, large: bool = False) -> Ending:
        """Return how the trial ends, if it does.

        Args:
            large: Whether updates still replace weights.
        """
        if self.unmeasured >= WINDOW and not self.losses:
            return Ending.CALM  # There is nothing to measure by but that no alarm came.
        if len(self.losses) == FIRST and self.no_cure:
            return Ending.TAKEN_BACK
        if not self.losses or len(self.losses) % WINDOW:
            return Ending.NOT_YET
        if self._cured():
            return Ending.KEPT
        if large and self.lowers_rate and len(self.losses) >= PATIENT * WINDOW and self.descents < MOST_DESCENTS:
            return Ending.TOO_FAST
        # A fresh network begins anew, and above what the old one had come to.
        worse = self.learned and chance_of_lower(self.trouble, self.window) < CHANCE
        done = len(self.losses) >= WINDOW * WINDOWS
        if not worse and not done:
            return Ending.NOT_YET
        # The trouble may have been seen in two steps only, of which ranks can prove little.
        below = bool(self.trouble) and all(max(self.losses) < v or math.isnan(v) for v in self.trouble)
        better = below or chance_of_lower(self.window, self.trouble) < CHANCE
        return Ending.KEPT if better and (self.learned or self.last or self._falls) else Ending.TAKEN_BACK

    def _cured(self) -> bool:
        """Return whether the loss is where it was before the trouble; of a fresh run, whether it learns."""
        if self.learned:
            # Hardly distinguishable from both, it is no better than the trouble was.
            as_bad = bool(self.trouble) and self.level >= statistics.median(self.trouble)
            return not as_bad and not chance_of_lower(self.before, self.window) < CHANCE
        first = self.before[:FIRST] + self.losses[:FIRST]
        newest = self.losses[max(FIRST, len(self.losses) - WINDOW) :]
        # A run that learns fast has learned within the first few losses, so the very first one counts.
        return 0.0 <= self.level < LEARNED * self.losses[0] or chance_of_lower(newest, first) < CHANCE

    @property
    def _falls(self) -> bool:
        """Whether all of the losses tell that the network learns at the rate as written, however slowly."""
        half = len(self.losses) // 2
        return not self.lowers_rate and chance_of_lower(self.losses[half:], self.losses[:half]) < CHANCE

    def record(self, step: int, ending: Ending, before: Sequence[float] | None = None) -> TrialRecord:
        """Return what is told of the trial, which ends at a step.

        Args:
            step: Number of the step.
            ending: How it ends.
            before: Losses from before the trouble, where :attr:`before` holds those of a network drawn anew.
        """
        levels = level_of(self.before if before is None else before), level_of(self.trouble), self.level
        return TrialRecord(self.cause, self.treatment, self.step, step, ending.value, *levels)

    def state_dict(self) -> dict[str, Any]:
        """Return everything; :meth:`from_state` makes a trial of it."""
        return {
            "cause": self.cause,
            "treatment": list(self.treatment),
            "step": self.step,
            "before": list(self.before),
            "trouble": list(self.trouble),
            "learned": self.learned,
            "last": self.last,
            "losses": list(self.losses),
            "unmeasured": self.unmeasured,
            "large": self.large,
            "descents": self.descents,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trial:
        """Make a trial of what :meth:`state_dict` returned."""
        trial = cls(
            str(state["cause"]),
            [str(name) for name in state["treatment"]],
            int(state["step"]),
            before=map(float, state["before"]),
            trouble=map(float, state["trouble"]),
            learned=bool(state["learned"]),
            last=bool(state["last"]),
        )
        trial.losses = [float(v) for v in state["losses"]]
        trial.unmeasured, trial.descents = int(state["unmeasured"]), int(state["descents"])
        trial.large = int(state["large"])
        return trial
