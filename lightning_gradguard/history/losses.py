"""The losses of accepted steps. One idea: where the run began, the best that it has reached, and where it stands."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable
from typing import Any

from lightning_gradguard.history.level import beginning, level, noise
from lightning_gradguard.history.ranks import chance_of_lower
from lightning_gradguard.history.sample import ENOUGH, NORM_WINDOW, RECENT
from lightning_gradguard.history.updates import LARGE, WHOLE, UpdateHistory

APART = 4.0
"""Robust standard deviations, from step to step, by which losses must lie above others to be of another kind."""
UNMOVED = 0.85
"""Share of the untrained loss above which a run has come to nothing, or to what can be said without any input."""
LOST = 0.5
"""Share of what the loss had come down by that must be gone where a run has lost what it had learned."""
LOST_ONCE_CONVICTED = 0.15
"""The same once a rate has been convicted in the run: what is lost then, is lost by a rate that climbed too far."""
STUCK = 64
"""Losses that must all lie at twice the best level or more, and hardly fall, where a run has not come back to it."""
HARDLY = 0.1
"""Share of the way back to the best level below which half as many losses have hardly fallen."""
FLAT = 0.05
"""Probability, by chance, of losses so much lower from which they have not fallen."""
LIKELY = 0.01
"""The same where the level of the loss has been halved."""
BEST_BY_CHANCE = 1e-4
"""Probability, by chance, of the best losses lying so far below the first ones from which something has been learned.

It is asked at each new best level: in thousands of steps of pure noise some ten times independently."""


class LossHistory:
    """Remember the losses of accepted steps.

    Args:
        updates: Tells how large updates were: where they replace weights, only the very first losses are of untrained
            ones.

    Attributes:
        first: The first few losses of the run.
        best_level: Lowest level (median of a few steps) that the run has reached.
    """

    def __init__(self, updates: UpdateHistory) -> None:
        self._updates = updates
        self._losses = array("d")
        self.first: list[float] = []
        self._beginning = math.nan
        self.best_level, self._learned = math.inf, False
        # The losses at that time.
        self._best = array("d")
        # Detectors ask for the same few levels again and again between two accepted steps.
        self._levels: dict[tuple[int | None, int], tuple[float, float]] = {}

    def recall(self, losses: Iterable[float]) -> None:
        """Learn the losses of accepted steps that were not known then."""
        for loss in losses:
            self.accept(loss)

    def accept(self, loss: float) -> None:
        """Learn the loss of an accepted step; one that is not finite teaches nothing."""
        if math.isfinite(loss):
            self._losses.append(loss)
            if len(self._losses) > NORM_WINDOW:
                del self._losses[0]
            self._levels.clear()
            if len(self.first) < RECENT:
                self.first.append(loss)
                self._beginning = beginning(self.first)
            else:
                level = self.level(RECENT)[0]
                # A median of nine ignores four losses of a run that is being lost, and those are no measure of the
                # best.
                if level <= self.best_level and loss <= level:
                    self.best_level, self._best = level, self._losses[-ENOUGH:]

    @property
    def untrained(self) -> float:
        """The loss before training: the very first, or the lower quartile of the first few if larger; NaN at first.

        The first alone may be tiny by luck (a batch of two); a median of the first few is spoilt by a run that diverges
        at once. Where the first updates were large it may be spoilt by them: then the second lowest of the first few is
        taken, or the very first alone where they replaced all of the weights.
        """
        if not self.first or self._updates.ratio <= LARGE:
            return self._beginning
        return self.first[0] if self._updates.ratio > WHOLE else max([self.first[0], *sorted(self.first)[1:2]])

    @property
    def of_untrained(self) -> list[float]:
        """The losses that may be of untrained weights."""
        return self.first[:1] if self._updates.ratio > WHOLE else list(self.first)

    @property
    def learned(self) -> bool:
        """Whether the best level of the loss is below that before training, beyond chance; False of no loss."""
        if self._learned:
            return True  # Once and for all: neither the first losses nor the best one change for the worse.
        if len(self.first) < RECENT or len(self._best) < ENOUGH or not self.best_level < self.untrained:
            return False
        if self._updates.ratio > LARGE and self.first[0] > 0.0:
            # All but the very first loss may be of the weights that large updates have made.
            self._learned = self.best_level < 0.5 * self.first[0]
            return self._learned
        # A run that learns fast has learned something within the first few losses already, so half of their level needs
        # less proof.
        half = self.best_level < 0.5 * sorted(self.first)[RECENT // 2]
        self._learned = chance_of_lower(self._best, self.first) < (LIKELY if half else BEST_BY_CHANCE)
        return self._learned

    def far_from_best(self, loss: float) -> bool:
        """Return whether half of what the loss has come down by is gone in ``loss``; less after a conviction."""
        share = LOST_ONCE_CONVICTED if self._updates.convicted else LOST
        return loss - self.best_level > share * (self.untrained - self.best_level)

    @property
    def mostly_lost(self) -> bool:
        """Whether the last few losses are as far from the best level as those of a run that has lost it."""
        return self.learned and self.far_from_best(self.level(RECENT)[0])

    @property
    def lost(self) -> bool:
        """Whether most of what had been learned is lost, beyond chance."""
        return len(self._losses) >= 2 * RECENT and self.mostly_lost and self.worse

    @property
    def stuck(self) -> bool:
        """Whether the loss stays at twice its best level or more, and will not soon come back, if ever.

        What it was before training may be of a wild scale, and tells nothing of how far that is.
        """
        lately, half = self.latest(STUCK), STUCK // 2
        if len(lately) < STUCK or not min(lately) > 2.0 * self.best_level > 0.0:
            return False
        now = self.level(half)[0]
        return self.level(half, skip=half)[0] - now < HARDLY * (now - self.best_level)

    @property
    def worse(self) -> bool:
        """Whether all of the last losses lie above nearly all of those at the best level, which is no chance."""
        enough = len(self._best) >= RECENT and len(self._losses) >= RECENT
        return enough and min(self._losses[-RECENT:]) > sorted(self._best)[int(0.9 * (len(self._best) - 1))]

    @property
    def recovering(self) -> bool:
        """Whether the newest three losses lie below all but one of the six before: what was lost comes back."""
        newest = self._losses[-RECENT:]
        return len(newest) == RECENT and max(newest[6:]) < sorted(newest[:6])[1]

    @property
    def best(self) -> list[float]:
        """The losses at the time of the best level."""
        return list(self._best)

    @property
    def at_best(self) -> bool:
        """Whether the last few losses are the best level that was reached."""
        return self.best_level < math.inf and self.level(RECENT)[0] <= self.best_level

    @property
    def above_untrained(self) -> bool:
        """Whether all of the last losses lie above that before training, by as much again and beyond chance."""
        return len(self._losses) > RECENT and self.stands_above(self._losses[-RECENT:], self.untrained)

    def stands_above(self, losses: Iterable[float], reference: float) -> bool:
        """Return whether all ``losses`` lie above ``reference``, and their level by its size and beyond their noise."""
        ordered = sorted(losses)
        if not ordered or not ordered[0] > reference:
            return False
        if reference > 0.0:
            # On a logarithmic scale, since losses of heavy tails are common; first, since a ratio of doubles may be 0.
            steps = [abs(math.log(b) - math.log(a)) for a, b in self._pairs() if a > 0.0 < b]
            return math.log(ordered[0] / reference) > math.log(2.0) * 0.5 and math.log(
                ordered[len(ordered) // 2] / reference
            ) > max(math.log(2.0), APART * noise(steps))
        steps = [abs(b - a) for a, b in self._pairs()]
        return ordered[len(ordered) // 2] - reference > max(abs(reference), APART * noise(steps))

    def _pairs(self) -> Iterable[tuple[float, float]]:
        return itertools.pairwise(self._losses)  # Of all: the noise of sixteen is often half of what it is.

    @property
    def unmoved(self) -> bool:
        """Whether the level of the loss is still close to that before training, or above it."""
        return self.level(RECENT)[0] > self.untrained - (1.0 - UNMOVED) * abs(self.untrained)

    @property
    def flat(self) -> bool:
        """Whether the newest losses are no lower than those before them, beyond chance."""
        lately, earlier = self.latest(ENOUGH), self.latest(ENOUGH, skip=ENOUGH)
        return len(earlier) == ENOUGH and chance_of_lower(lately, earlier) > FLAT

    def latest(self, count: int, *, skip: int = 0) -> list[float]:
        """Return the newest of the remembered losses, oldest first, without the last ``skip``."""
        end = max(len(self._losses) - skip, 0)
        return list(self._losses[max(end - count, 0) : end])

    def level(self, last: int | None = None, *, skip: int = 0) -> tuple[float, float]:
        """Return median and robust spread of the remembered losses; NaN where there are none.

        Args:
            last: How many of them, counted from the newest; all by default.
            skip: How many of the newest to leave out first.
        """
        found = self._levels.get((last, skip))
        if found is None:
            end = max(len(self._losses) - skip, 0)
            found = level(self._losses[max(end - last, 0) if last else 0 : end])
            self._levels[last, skip] = found
        return found

    def worse_than_untrained(self, loss: float | None) -> bool:
        """Return whether the loss lies above what it was before training."""
        return loss is not None and loss > self.untrained > 0.0

    def elevated(self, loss: float | None) -> bool | None:
        """Return whether ``loss`` lies far above its history; None where that cannot be said."""
        level, spread = self.level()
        return None if loss is None or math.isnan(level) else not loss <= level + max(abs(level), 6.0 * spread)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {
            "losses": list(self._losses),
            "first_losses": list(self.first),
            "best_loss": self.best_level,
            "best": list(self._best),
            "learned": self._learned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._losses = array("d", state["losses"])[-NORM_WINDOW:]
        self._levels.clear()
        self.first = [float(v) for v in state["first_losses"]]
        self._beginning = beginning(self.first)
        self.best_level, self._best = float(state["best_loss"]), array("d", state["best"])
        self._learned = bool(state["learned"])
