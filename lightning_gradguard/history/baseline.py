"""What a healthy step looks like: the norms, the losses and the updates of accepted steps, and what they say together.

Only finite values of accepted steps enter.
"""

from __future__ import annotations

import math
from typing import Any

from lightning_gradguard.history.losses import LossHistory
from lightning_gradguard.history.norms import GONE, NormHistory
from lightning_gradguard.history.sample import FEW, RECENT, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE, UpdateHistory

OVERRUN = 3.0
"""Times the untrained loss that a young run's loss stays below in health, unless its first batches were no sample."""
ORDINARY = 3.0
"""Times the typical norm, up or down, that is nothing to look up for."""
OUTSIZED = 8.0
"""Times the usual size of an update, by norm and rate, above which it is measured; as for a spike."""
VANISHED = 0.1
"""Share of what they were to which a loss below zero and its gradients come together where both are products."""


class Baseline:
    """Remember what accepted steps were like.

    Attributes:
        count: Accepted steps so far.
        norms: Their gradient norms.
        losses: Their losses.
        updates: The size of their updates, and their rates.
        deceived: Whether the loss was found to be no measure of the run: it fell as the run was lost, or it is a cost
            that gradients are multiples of.
        alone: Whether no other optimizer of the run may have moved what the loss is measured by: a critic's targets are
            the actor's doing. Told anew at each step.
    """

    def __init__(self) -> None:
        self.count = 0
        self.deceived, self.alone = False, True
        self.norms = NormHistory()
        self.updates = UpdateHistory()
        self.losses = LossHistory(self.updates)

    def accept(
        self, norm: float, loss: float | None, *, update_ratio: float | None = None, rate: float | None = None
    ) -> None:
        """Learn one accepted step; a zero or non-finite norm and a non-finite loss teach nothing.

        Args:
            norm: Its gradient norm.
            loss: Its loss, where that is known.
            update_ratio: The size of its update against the weights, momentum filled, where that was measured.
            rate: Its learning rate, where that is known.
        """
        self.count += 1
        self.norms.accept(norm, self.count)
        if loss is not None:
            self.losses.accept(loss)
        if self.count == 2 * THIN_HISTORY and self.losses.learned:
            self.updates.forget_ratio()  # The run has learned with updates of that size.
        self.deceived = self.deceived or self._weighted
        if update_ratio is not None:
            self.updates.accept(update_ratio)
        if rate is not None:
            self.updates.accept_rate(rate)

    def forget_losses(self) -> None:
        """Forget the losses alone."""
        self.losses = LossHistory(self.updates)

    def anew(self) -> Baseline:
        """Return what is known in another regime of data, loss or task: nothing but the rates."""
        found = Baseline()
        found.alone = self.alone
        found.updates.rate, found.updates.looked = self.updates.rate, self.updates.looked
        return found

    @property
    def loss_tells(self) -> bool:
        """Whether the loss is a measure of the run.

        It is none where it was found to deceive, or where the first ones lie on both sides of zero, as a policy's do:
        what is positive and negative for untrained weights is no distance from anything.
        """
        first = self.losses.first
        return not self.deceived and not (first and min(first) < 0.0 < max(first))

    @property
    def progress(self) -> tuple[bool, bool, bool]:
        """Whether the loss is at its best, something was learned, and the loss is worse; of no measure, nothing is.

        Nor where loss and gradients have gone: until the outputs tell, no rate has proved to be good by that.
        """
        losses, tells = self.losses, self.loss_tells and not self.put_out
        return (losses.at_best, losses.learned, losses.worse) if tells else (False, False, False)

    def outlasting(self) -> tuple[Any, ...]:
        """Return what is known and does not go back with the weights, for :meth:`outlast`."""
        norms, updates = self.norms, self.updates
        usual = max(norms.first, norms.typical) if self.count >= THIN_HISTORY else norms.prior
        return usual, updates.ratio, updates.first_ratio, updates.convicted, self.deceived, updates.per_norm

    def outlast(self, kept: tuple[Any, ...]) -> None:
        """Take back what :meth:`outlasting` returned."""
        updates = self.updates
        self.norms.prior, updates.ratio, updates.first_ratio, updates.convicted, self.deceived, updates.per_norm = kept

    @property
    def put_out(self) -> bool:
        """Whether gradients and loss have all but disappeared after updates that replaced weights.

        So does a task that is solved; and a policy that has become certain, right or wrong: the logarithm of what is
        certain is zero, and so is its gradient. Only the outputs tell.
        """
        lately = sorted(map(abs, self.losses.latest(RECENT)))
        # The very first alone is of untrained weights: the later ones may be those of an explosion.
        at_first = abs(self.losses.first[0]) if self.losses.first else 0.0
        large = max(self.updates.ratio, self.updates.first_ratio) > LARGE
        return large and len(lately) == RECENT and self.norms.gone and lately[RECENT // 2] < GONE * at_first

    @property
    def _weighted(self) -> bool:
        """Whether a loss that was below zero has come close to it, and its gradients with it.

        It is a log-probability times a cost: the policy learns to avoid that, and the loss rises.
        """
        first = self.losses.first
        if len(first) < RECENT or not max(first) < 0.0:
            return False
        small = VANISHED * first[0] < self.losses.level(RECENT)[0]
        return small and self.norms.recent < self.norms.high_water + math.log(VANISHED)

    def overrun(self, loss: float) -> bool:
        """Return whether a young run that has come to nothing yet is being lost to updates that replace weights."""
        if not self.losses.first or self.updates.ratio <= LARGE:
            return False
        first = self.losses.first[0]
        return loss > OVERRUN * first > 0.0 and min(self.losses.first) > 0.5 * first

    def usual_norm(self, rate: float, factor: float) -> float:
        """Return the norm of an update ``factor`` times the usual one at this rate; inf where none is usual yet."""
        if self.count < RECENT or not self.updates.usual_rate or not rate > 0.0:
            return math.inf
        return factor * self.norms.typical * self.updates.usual_rate / rate

    def outsized(self, norm: float, rate: float | None) -> bool:
        """Return whether an update would be so much larger than usual that it should be looked at."""
        return rate is not None and norm > self.usual_norm(rate, OUTSIZED)

    def may_overrun(self, norm: float, loss: float | None, rate: float | None) -> bool:
        """Return whether an update may be one that overruns the weights, so that it is worth measuring."""
        # The loss first: it says no in nearly every step.
        return self.losses.worse_than_untrained(loss) and self.outsized(norm, rate)

    def exceptional(self, norm: float, loss: float | None, rate: float | None) -> bool:
        """Return whether a norm is that of one step alone, so that its update tells nothing of the others."""
        rare = self.count >= THIN_HISTORY and norm > OUTSIZED * self.norms.typical
        return rare and not self.may_overrun(norm, loss, rate)

    def asks_for_update(self, norm: float, loss: float | None, rate: float | None) -> bool:
        """Return whether the update should be measured against the weights: at first, and where it may be too large."""
        young = self.count < FEW or norm > OUTSIZED * self.norms.typical
        return young or self.updates.rate_leapt(rate) or self.may_overrun(norm, loss, rate)

    def ordinary(self, norm: float, loss: float | None) -> bool:
        """Return whether a step is like any other: its norm close to the typical one, its loss where it has been."""
        typical = self.count >= THIN_HISTORY and self.norms.typical / ORDINARY <= norm <= self.norms.typical * ORDINARY
        return typical and self.losses.elevated(loss) is False

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {
            "count": self.count,
            "deceived": self.deceived,
            **self.norms.state_dict(),
            **self.losses.state_dict(),
            **self.updates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.count, self.deceived = int(state["count"]), bool(state["deceived"])
        for part in (self.norms, self.losses, self.updates):
            part.load_state_dict(state)
