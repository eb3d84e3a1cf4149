"""What a healthy step looks like: robust statistics of the log gradient norm and of the loss.

Only finite values of accepted steps enter. Medians and quantiles make it indifferent to what slipped through.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any

from lightning_gradguard.history.ranks import chance_of_lower

NORM_WINDOW = 128
"""Accepted steps remembered: long enough for a quantile, short enough to follow a decaying norm."""
RECENT = 9
"""Accepted steps that make up *now*; a median of nine shrugs off four outliers."""
YOUNG = 32
"""Accepted steps below which the history of norms and losses is thin."""
LEAP = 3.0
"""Times the untrained loss that a young run's loss does not reach in health, unless its first batches were no sample."""
RISE = 3.0
"""Times the largest rate so far above which an update is measured before it is made."""
MEMORY = 5000.0
"""Accepted steps in which the high-water mark sinks by a factor of e: what a run has lived with, it lives with again."""
LARGE = 0.1
"""Update-to-weight ratio from which an update replaces weights; 1e-4 to 1e-1 is healthy."""
WHOLE = 1.0
"""Update-to-weight ratio from which an update replaces all of the weights, so that only the very first loss is of the untrained ones."""
APART = 4.0
"""Robust standard deviations, from step to step, by which losses must lie above others to be of another kind."""
LOST = 0.5
"""Share of what the loss had come down by that must be gone where a run has lost what it had learned."""
ORDINARY = 3.0
"""Times the typical norm, up or down, that is nothing to look up for."""
OUTSIZED = 8.0
"""Times the usual size of an update, by norm and rate, above which it is measured against the weights; as for a spike."""
RATE_MEMORY = 64
"""Time constant, in accepted steps, of the usual rate: norms are remembered twice as long, and their median is half that old."""
BEFORE = 32
"""Losses, before the last few, that tell where the run stood of late."""
FLOOR = 1e-38
ENOUGH = 16
"""Values from which their spread is worth something."""
FADED = 0.01
"""Share of what they were at which gradients have faded."""
GROWN = 1.5
"""Growth from one level of nine losses to the next, twice in a row, that no change of the data makes: that is a single leap."""
FLAT = 0.05
"""Probability, by chance, of losses so much lower from which they have not fallen."""
LIKELY = 0.01
"""The same where the level of the loss has been halved."""
SURE = 1e-4
"""Probability, by chance, of the best losses lying so far below the first ones from which something has been learned. It is asked at each
new best level, so of thousands of steps of pure noise some ten times independently."""


class Sample:
    """The last few values of something, in their order and sorted.

    In arrays, since after a pass over the gradients each number of a list would be fetched from memory on its own.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values = array("d", values)[-NORM_WINDOW:]
        self._sorted = array("d", sorted(self.values))

    def push(self, value: float) -> None:
        """Add one, and forget the oldest where there are too many."""
        if len(self.values) == NORM_WINDOW:
            del self._sorted[bisect_left(self._sorted, self.values[0])]
            del self.values[0]
        self.values.append(value)
        insort(self._sorted, value)

    def quantile(self, q: float) -> float:
        """Return the ``q``-quantile; NaN of nothing."""
        return self._sorted[round(q * (len(self._sorted) - 1))] if self._sorted else math.nan

    @property
    def spread(self) -> float:
        """Robust standard deviation, 0.0 of fewer than two.

        The larger of the interquartile range and the upper decile, each scaled to a normal distribution
        (1.349 and 1.2816 sigma), so that a long right tail widens it.
        """
        if len(self._sorted) < 2:
            return 0.0
        box = (self.quantile(0.75) - self.quantile(0.25)) / 1.349
        return max(box, (self.quantile(0.9) - self.quantile(0.5)) / 1.2816)


class Baseline:
    """Remember accepted gradient norms and losses.

    Attributes:
        count: Accepted steps so far.
        silent: Accepted steps in a row whose gradients were zero.
        high_water: Log of the largest norm that the run survived, slowly forgotten.
        first_losses: The first few losses of the run.
        best_loss: Lowest loss level (median of a few steps) that the run has reached.
        update_ratio: Largest ``||update|| / ||weight||`` of the updates that were measured, momentum filled.
        first_ratio: The first of them at the present rate, which is of weights that no large update has changed yet.
        convicted: Whether a rate has been convicted in this run, so that a loss that is lost speaks against the next one.
        looked: Rate at which an update was last measured.
        rate: Largest learning rate of an accepted step.
        usual_rate: Geometric mean of the learning rates of late, newer ones counting more; 0 if unknown.
        first_norm: Largest norm among the first few accepted steps of the run.
        prior: Norm that was usual before the run went back to where nothing was known; 0 if it never did.
    """

    def __init__(self) -> None:
        self.count = self.silent = 0
        self.high_water = -math.inf
        self._norms = Sample()
        # How far each norm lay above those just before it.
        self._surprises = Sample()
        # Asked for several times between two accepted steps.
        self._center = math.nan
        self._recent: float | None = None
        self._losses = array("d")
        self.first_losses: list[float] = []
        self._beginning = math.nan
        self.first_norm = self.prior = 0.0
        self.update_ratio = self.first_ratio = self.looked = 0.0
        self.convicted = False
        self.rate = self.usual_rate = 0.0
        self.best_loss, self._learned = math.inf, False
        # The losses at that time.
        self._best = array("d")
        # Detectors ask for the same few levels again and again between two accepted steps.
        self._levels: dict[tuple[int | None, int], tuple[float, float]] = {}

    def accept(self, norm: float, loss: float | None) -> None:
        """Learn one accepted step; a zero or non-finite norm and a non-finite loss teach nothing."""
        self.count += 1
        self.silent = self.silent + 1 if norm <= FLOOR else 0
        if math.isfinite(norm) and norm > FLOOR:
            self._push(math.log(norm))
            if self.count <= RECENT:
                self.first_norm = max(self.first_norm, norm)
        if loss is not None:
            self._push_loss(loss)
        if self.count == 2 * YOUNG and self.learned:
            self.update_ratio = 0.0  # The run has learned with updates of that size.

    def accept_update(self, ratio: float) -> None:
        """Learn the size of an update that was made and measured, against the weights."""
        self.first_ratio = self.first_ratio or ratio
        self.update_ratio = max(self.update_ratio, ratio)

    def forget_first_update(self) -> None:
        """Forget the size of the first update: it was a layer's doing that has been repaired, and says nothing of the rate."""
        self.update_ratio = 0.0

    def forget_prior(self) -> None:
        """Forget the norm that was usual before: it was of other weights."""
        self.prior = 0.0

    def slow_down(self) -> None:
        """Note that a rate was convicted: what was measured of updates was of another rate."""
        self.update_ratio = self.first_ratio = 0.0
        self.convicted = True

    def outlasting(self) -> tuple[float, float, float, bool]:
        """Return what is known and does not go back with the weights, for :meth:`outlast`."""
        usual = max(self.first_norm, self.typical) if self.count >= YOUNG else self.prior
        return usual, self.update_ratio, self.first_ratio, self.convicted

    def outlast(self, kept: tuple[float, float, float, bool]) -> None:
        """Take back what :meth:`outlasting` returned."""
        self.prior, self.update_ratio, self.first_ratio, self.convicted = kept

    def look(self, rate: float | None) -> None:
        """Note the rate of a step whose update was measured."""
        self.looked = rate or 0.0

    def accept_rate(self, rate: float) -> None:
        """Learn the rate of an accepted step."""
        if rate > 0.0 and rate != self.usual_rate:
            usual = self.usual_rate or rate
            self.usual_rate = usual * (rate / usual) ** (1.0 / RATE_MEMORY)

    def recall(self, losses: Iterable[float]) -> None:
        """Learn the losses of steps that were accepted earlier, before they were known."""
        for loss in losses:
            self._push_loss(loss)

    def _push_loss(self, loss: float) -> None:
        if math.isfinite(loss):
            self._losses.append(loss)
            if len(self._losses) > NORM_WINDOW:
                del self._losses[0]
            self._levels.clear()
            if len(self.first_losses) < RECENT:
                self.first_losses.append(loss)
                self._beginning = _beginning(self.first_losses)
            else:
                level = self.loss_level(RECENT)[0]
                # A median of nine shrugs off four losses of a run that is being lost, and those are no measure of the best.
                if level <= self.best_loss and loss <= level:
                    self.best_loss, self._best = level, self._losses[-ENOUGH:]

    def _push(self, log_norm: float) -> None:
        if self._norms.values:
            self._surprises.push(log_norm - self.recent)
        self._norms.push(log_norm)
        self._center, self._recent = self._norms.quantile(0.5), None
        self.high_water = max(log_norm, self.high_water - 1.0 / MEMORY)

    @property
    def log_norms(self) -> tuple[float, ...]:
        """The remembered log norms, oldest first."""
        return tuple(self._norms.values)

    def quantile(self, q: float) -> float:
        """Return the ``q``-quantile of the remembered log norms; NaN while there are none."""
        return self._norms.quantile(q)

    @property
    def center(self) -> float:
        """Median log norm over the window."""
        return self._center

    @property
    def recent(self) -> float:
        """Median log norm over the last few accepted steps; NaN while there are none."""
        if self._recent is None:
            self._recent = self.earlier(0)
        return self._recent

    def earlier(self, skip: int) -> float:
        """Return the median log norm of a few steps, ``skip`` accepted steps ago; NaN where there are none."""
        end = max(len(self._norms.values) - skip, 0)
        few = sorted(self._norms.values[max(end - RECENT, 0) : end])
        return few[len(few) // 2] if few else math.nan

    @property
    def spread(self) -> float:
        """Robust standard deviation of the log norm about its recent level.

        That of the window counts a trend as noise (a norm that grew eightfold while the run left a plateau would excuse a
        spike of two orders of magnitude), so from a few surprises on the smaller of the two is taken.
        """
        wide = self._norms.spread
        return min(wide, self._surprises.spread) if len(self._surprises.values) >= ENOUGH else wide

    @property
    def typical(self) -> float:
        """The norm that a healthy step has now: the larger of the window's and the last steps' median; NaN at first."""
        return math.exp(max(self._center, self.recent)) if self._norms.values else math.nan

    @property
    def untrained_loss(self) -> float:
        """The loss before training: the very first, or the lower quartile of the first few if that is larger; NaN at first.

        The first alone may be tiny by luck (a batch of two); a median of the first few is spoilt by a run that
        diverges at once. Where the first updates were large it may be spoilt by them: then the second lowest of the first few is taken, or
        the very first alone where they replaced all of the weights.
        """
        if not self.first_losses or self.update_ratio <= LARGE:
            return self._beginning
        first, whole = self.first_losses[0], self.update_ratio > WHOLE
        return first if whole else max([first, *sorted(self.first_losses)[1:2]])

    @property
    def untrained_losses(self) -> list[float]:
        """The losses that may be of untrained weights."""
        return self.first_losses[:1] if self.update_ratio > WHOLE else list(self.first_losses)

    @property
    def learned(self) -> bool:
        """Whether the best level of the loss is below what it was before training, beyond chance; False where no loss is known."""
        if self._learned:
            return True  # Once and for all: neither the first losses nor the best one change for the worse.
        if len(self.first_losses) < RECENT or len(self._best) < ENOUGH or not self.best_loss < self.untrained_loss:
            return False
        if self.update_ratio > LARGE and self.first_losses[0] > 0.0:
            # All but the very first loss may be of the weights that large updates have made.
            self._learned = self.best_loss < 0.5 * self.first_losses[0]
            return self._learned
        # Who learns fast has learned something within the first few losses already, so half of their level needs less proof.
        half = self.best_loss < 0.5 * sorted(self.first_losses)[RECENT // 2]
        self._learned = chance_of_lower(self._best, self.first_losses) < (LIKELY if half else SURE)
        return self._learned

    def far_from_best(self, loss: float) -> bool:
        """Return whether half of what the loss has come down by is gone in ``loss``."""
        return loss - self.best_loss > LOST * (self.untrained_loss - self.best_loss)

    @property
    def lost(self) -> bool:
        """Whether most of what had been learned is lost, beyond chance."""
        if not self.learned or len(self._losses) < 2 * RECENT:
            return False
        return self.far_from_best(self.loss_level(RECENT)[0]) and self.worse

    @property
    def worse(self) -> bool:
        """Whether all of the last losses lie above nearly all of those at the best level, so that chance has no part in it."""
        if len(self._best) < RECENT or len(self._losses) < RECENT:
            return False
        return min(self._losses[-RECENT:]) > sorted(self._best)[int(0.9 * (len(self._best) - 1))]

    def overrun(self, loss: float) -> bool:
        """Return whether a young run that has come to nothing yet is being lost to updates that replace weights."""
        if not self.first_losses or self.update_ratio <= LARGE:
            return False
        first = self.first_losses[0]
        return loss > LEAP * first > 0.0 and min(self.first_losses) > 0.5 * first

    @property
    def recovering(self) -> bool:
        """Whether the newest three losses lie below all but one of the six before them: what was lost comes back by itself."""
        newest = self._losses[-RECENT:]
        return len(newest) == RECENT and max(newest[6:]) < sorted(newest[:6])[1]

    @property
    def growing(self) -> bool:
        """Whether the loss grows on and on: each of its last three levels is half as large again as the one before."""
        levels = [self.loss_level(RECENT, skip=k * RECENT)[0] for k in (2, 1, 0)]
        newest = self._losses[-RECENT:]
        if len(newest) < RECENT or not min(newest[6:]) > max(newest[:3]):
            return False
        return 0.0 < GROWN * levels[0] < levels[1] and GROWN * levels[1] < levels[2]

    @property
    def best_losses(self) -> list[float]:
        """The losses at the time of the best level."""
        return list(self._best)

    @property
    def at_best(self) -> bool:
        """Whether the last few losses are the best level that was reached."""
        return self.best_loss < math.inf and self.loss_level(RECENT)[0] <= self.best_loss

    @property
    def above_untrained(self) -> bool:
        """Whether all of the last losses lie above what the loss was before training: by as much again, and apart from chance."""
        return len(self._losses) > RECENT and self.stands_above(self._losses[-RECENT:], self.untrained_loss)

    def stands_above(self, losses: Iterable[float], reference: float) -> bool:
        """Return whether all ``losses`` lie above ``reference``, and their level by its size and beyond their noise."""
        ordered = sorted(losses)
        if not ordered or not ordered[0] > reference:
            return False
        if reference > 0.0:
            # On a logarithmic scale, since losses of heavy tails are common.
            # Logarithms first: a ratio of doubles may be 0.
            steps = [abs(math.log(b) - math.log(a)) for a, b in self._pairs() if a > 0.0 < b]
            return math.log(ordered[0] / reference) > math.log(2.0) * 0.5 and math.log(
                ordered[len(ordered) // 2] / reference
            ) > max(math.log(2.0), APART * _noise(steps))
        steps = [abs(b - a) for a, b in self._pairs()]
        return ordered[len(ordered) // 2] - reference > max(abs(reference), APART * _noise(steps))

    def _pairs(self) -> Iterable[tuple[float, float]]:
        # All that are remembered: the noise of sixteen is often half of what it is.
        return itertools.pairwise(self._losses)

    @property
    def flat(self) -> bool:
        """Whether the newest losses are no lower than those before them, beyond chance."""
        half = min(len(self._losses) // 2, YOUNG)
        lately, earlier = self.latest_losses(half), self.latest_losses(half, skip=half)
        return half >= ENOUGH and chance_of_lower(lately, earlier) > FLAT

    def faded(self, *, since_first: bool) -> bool:
        """Return whether gradients are a hundredth of what they were, at first or of late: units have died."""
        before = math.log(self.first_norm) if since_first and self.first_norm > 0.0 else self.center
        return self.recent < before + math.log(FADED)

    def latest_losses(self, count: int, *, skip: int = 0) -> list[float]:
        """Return the newest of the remembered losses, oldest first, without the last ``skip``."""
        end = max(len(self._losses) - skip, 0)
        return list(self._losses[max(end - count, 0) : end])

    def loss_level(self, last: int | None = None, *, skip: int = 0) -> tuple[float, float]:
        """Return median and robust spread of the remembered losses; NaN where there are none.

        Args:
            last: How many of them, counted from the newest; all by default.
            skip: How many of the newest to leave out first.
        """
        found = self._levels.get((last, skip))
        if found is None:
            end = max(len(self._losses) - skip, 0)
            found = _level(self._losses[max(end - last, 0) if last else 0 : end])
            self._levels[last, skip] = found
        return found

    def rate_leapt(self, rate: float | None) -> bool:
        """Tell whether a rate lies so far above that of the last look that its update should be measured."""
        return rate is not None and 0.0 < RISE * self.looked < rate

    def usual_norm(self, rate: float, factor: float) -> float:
        """Return the norm that makes an update ``factor`` times the usual one at this rate; inf where none is usual yet."""
        if self.count < RECENT or not self.usual_rate or not rate > 0.0:
            return math.inf
        return factor * self.typical * self.usual_rate / rate

    def worse_than_untrained(self, loss: float | None) -> bool:
        """Tell whether the loss lies above what it was before training."""
        return loss is not None and loss > self.untrained_loss > 0.0

    def outsized(self, norm: float, rate: float | None) -> bool:
        """Tell whether an update would be so much larger than usual that it should be looked at."""
        return rate is not None and norm > self.usual_norm(rate, OUTSIZED)

    def loss_elevated(self, loss: float | None) -> bool | None:
        """Tell whether ``loss`` lies far above its history; None where that cannot be said."""
        level, spread = self.loss_level()
        if loss is None or math.isnan(level):
            return None
        return not loss <= level + max(abs(level), 6.0 * spread)

    def ordinary(self, norm: float, loss: float | None) -> bool:
        """Tell whether a step is like any other: its norm close to the typical one, its loss where it has been."""
        typical = self.count >= YOUNG and self.typical / ORDINARY <= norm <= self.typical * ORDINARY
        return typical and self.loss_elevated(loss) is False

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {
            "count": self.count,
            "silent": self.silent,
            "high_water": self.high_water,
            "norms": list(self._norms.values),
            "surprises": list(self._surprises.values),
            "losses": list(self._losses),
            "first_losses": list(self.first_losses),
            "best_loss": self.best_loss,
            "best": list(self._best),
            "learned": self._learned,
            "update_ratio": self.update_ratio,
            "rate": self.rate,
            "usual_rate": self.usual_rate,
            "first_norm": self.first_norm,
            "prior": self.prior,
            "looked": self.looked,
            "first_ratio": self.first_ratio,
            "convicted": self.convicted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.count, self.silent = int(state["count"]), int(state["silent"])
        self.high_water = float(state["high_water"])
        self._norms, self._surprises = Sample(state["norms"]), Sample(state["surprises"])
        self._losses = array("d", state["losses"])[-NORM_WINDOW:]
        self._levels.clear()
        self._center, self._recent = self._norms.quantile(0.5), None
        self.first_losses = [float(v) for v in state["first_losses"]]
        self._beginning = _beginning(self.first_losses)
        self.best_loss, self._best, self._learned = (
            float(state["best_loss"]),
            array("d", state["best"]),
            bool(state["learned"]),
        )
        self.update_ratio = float(state["update_ratio"])
        self.rate = float(state["rate"])
        self.usual_rate = float(state["usual_rate"])
        self.first_norm, self.prior = float(state["first_norm"]), float(state["prior"])
        self.first_ratio = float(state["first_ratio"])
        self.looked, self.convicted = float(state["looked"]), bool(state["convicted"])


def _beginning(losses: list[float]) -> float:
    """Return the first loss, or the lower quartile of the first few if that is larger; NaN of nothing."""
    return max(losses[0], sorted(losses)[(len(losses) - 1) // 4]) if losses else math.nan


def _noise(steps: list[float]) -> float:
    """Return the robust standard deviation of values from the absolute differences of successive ones: median / (0.6745 sqrt 2)."""
    return sorted(steps)[len(steps) // 2] / 0.954 if steps else 0.0


def _level(losses: array[float]) -> tuple[float, float]:
    """Return median and robust spread; NaN of nothing."""
    if not losses:
        return math.nan, math.nan
    ordered = sorted(losses)
    n = len(ordered) - 1
    return ordered[round(n / 2)], (ordered[round(0.75 * n)] - ordered[round(0.25 * n)]) / 1.349
