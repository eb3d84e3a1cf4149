"""Overshoot: updates so large that they replace weights, and losses that are the worse for it."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from lightning_gradguard import checks
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.level import QUICK, leaps
from lightning_gradguard.history.ranks import chance_of_lower
from lightning_gradguard.history.sample import ENOUGH, RECENT
from lightning_gradguard.history.updates import LARGE, WHOLE
from lightning_gradguard.records import GradientStatistics, Verdict

RISEN = 1.5
"""Times the largest rate at which the loss has fallen from which a rate is another one."""
DEAD = 1e-4
"""Deviation of a batch's outputs over their RMS below which they ignore the input; untrained ones have a hundredth."""
NEARLY_ALL = 0.9
"""Share of the newest losses that must lie above the very first, where only that is known of untrained weights."""
ABOVE_BY_CHANCE = 1e-3
"""Probability, by chance, of losses above the untrained ones that is taken for none."""
LOST_BY_CHANCE = 1e-6
"""The same of losses above the best ones, which are chosen among many."""


class Overshoot(Detector):
    """Find a run that its updates have lost, by its own losses.

    A high loss alone is no evidence: batches are hard, data change, plateaus are long. Large updates alone are none
    either: a steep but right start makes them. Together they are, in one of these forms:

    - nothing had been learned, updates replaced weights (their size is more than a tenth of some weight matrix), and
      all of the last nine losses lie above the untrained one, by as much again and apart from their own noise;
    - the loss leapt so after such an update, and ``patience`` steps later nothing has been learned;
    - a rate was convicted before, and three losses in a row leap above all before them;
    - after such updates ``2 * patience`` steps have brought nothing, and the loss stays above the untrained one,
      or above the best one, beyond chance, or the gradients have faded to a hundredth;
    - the loss does not fall and the output no longer depends on the input: units have died, or the signal dies on its
      way;
    - loss and gradients have all but disappeared after such updates, and the softmax of the output is the same for all
      samples: a policy has become certain of one action, and its loss is no measure from then on;
    - something had been learned, half of it is gone in the median of the last nine losses, all nine lie above nearly
      all of the best ones, and the rate is larger than any the loss has fallen with, or updates replaced weights, or
      the gradients have faded, or a rate was convicted before. A change of the data raises the loss without any of
      these.

    Args:
        patience: Accepted steps in which a run that overshot may begin to learn.
    """

    name: ClassVar[str] = "overshoot"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, patience: int = 40) -> None:
        self.patience = checks.whole("patience", patience, least=RECENT)
        self._overshot = -1
        self._good = 0.0
        self._idle = 0

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        """Judge by the loss; silent where none is known, or where it is below what it was before training."""
        loss, untrained = statistics.loss, baseline.losses.untrained
        if loss is None or baseline.count < RECENT:
            return None
        if statistics.variation is not None and statistics.variation < DEAD:
            level = baseline.losses.level(RECENT)[0]
            return self._verdict(
                level, untrained, f"loss {level:.3g} stands still, and the output does not depend on the input"
            )
        if baseline.losses.learned:
            return self._lost(statistics, baseline)
        ratio = baseline.updates.ratio
        if ratio <= LARGE:
            return None
        level = baseline.losses.level(RECENT)[0]
        told = f"loss {level:.3g} after {untrained:.3g} before training, and updates of {ratio:.2g} x the weights"
        if loss > untrained and baseline.losses.above_untrained and not baseline.losses.recovering:
            return self._verdict(level, untrained, told)
        if baseline.norms.silent >= self.patience:
            return self._verdict(
                level, untrained, f"{told}: the gradients have been zero for {baseline.norms.silent} steps"
            )
        since, unmoved = baseline.count - self._overshot, baseline.losses.unmoved
        if self._overshot >= 0 and since >= self.patience and unmoved:
            return self._verdict(level, untrained, f"{told}: nothing was learned in {since} steps since it overshot")
        if self._idle and self._idle % (2 * self.patience) == 0:
            lately, first = baseline.losses.latest(2 * ENOUGH), baseline.losses.first
            faded = unmoved and baseline.norms.faded(since_first=True)
            if unmoved and chance_of_lower(baseline.losses.best, lately) < LOST_BY_CHANCE:
                best = baseline.losses.best_level
                return self._verdict(level, best, f"{told}: it had come down to {best:.3g}")
            # Where updates replaced all of the weights, only the very first loss is of the untrained ones.
            above = sum(v > untrained for v in lately) >= NEARLY_ALL * len(lately)
            if faded or (above if baseline.updates.ratio > WHOLE else chance_of_lower(first, lately) < ABOVE_BY_CHANCE):
                how = "gradients have faded" if faded else "the loss stays above the untrained one"
                return self._verdict(level, untrained, f"{told}: {how} for {self._idle} steps")
        return None

    def _lost(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        assert statistics.loss is not None
        losses, loss, alone = baseline.losses, statistics.loss, baseline.updates.convicted and baseline.alone
        if alone and losses.stuck:
            told = f"loss {loss:.3g} stays far above the {losses.best_level:.3g} that had been reached"
            return self._verdict(loss, losses.best_level, f"{told}, and a rate had to be lowered before")
        if not losses.far_from_best(loss):
            return None
        newest, earlier = [*losses.latest(QUICK - 1), loss], losses.latest(ENOUGH, skip=QUICK - 1)
        if baseline.updates.convicted and len(earlier) == ENOUGH and leaps(newest, earlier):
            return self._verdict(loss, losses.level(RECENT)[0], f"loss {loss:.3g}, the third in a row that leaps")
        if not losses.lost or losses.recovering:
            return None
        rate = statistics.rate or 0.0
        if rate > RISEN * self._good > 0.0:
            why = f"a learning rate {rate / self._good:.3g} x the largest that it fell with"
        elif baseline.updates.ratio > LARGE:
            why = f"updates of {baseline.updates.ratio:.2g} x the weights"
        elif baseline.norms.faded(since_first=False):
            why = "gradients that have faded"
        elif alone:
            # What another optimizer has changed makes a loss rise, too.
            why = "a rate that had to be lowered before"
        else:
            return None
        level = baseline.losses.level(RECENT)[0]
        return self._verdict(
            level,
            baseline.losses.best_level,
            f"loss {level:.3g} after {baseline.losses.best_level:.3g} had been reached, and {why}",
        )

    def _verdict(self, value: float, limit: float, reason: str) -> Verdict:
        return Verdict("divergence", self.name, value, limit, reason)

    def accept(self, statistics: GradientStatistics, baseline: Baseline) -> None:
        """Note an overshoot, the steps without learning, and the rates that the loss has fallen with."""
        loss, rate = statistics.loss, statistics.rate
        if loss is None:
            return
        if baseline.losses.learned:
            if rate is not None and rate > self._good and baseline.losses.at_best:
                self._good = rate
            return
        self._idle += 1
        if self._overshot >= 0 or baseline.updates.ratio <= LARGE or baseline.count < RECENT:
            return
        # Only now, since the noise of the losses has to be known.
        # Two in a row: what weights do lasts, and a hard batch is followed by another one.
        worst = max(map(min, itertools.pairwise(baseline.losses.latest(RECENT))), default=loss)
        if baseline.losses.stands_above([worst], baseline.losses.untrained):
            self._overshot = baseline.count

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the rate."""
        return {"overshot": self._overshot, "good": self._good, "idle": self._idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._overshot, self._good, self._idle = int(state["overshot"]), float(state["good"]), int(state["idle"])
