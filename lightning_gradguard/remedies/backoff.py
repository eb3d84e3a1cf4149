"""Learning-rate back-off that no scheduler undoes: held between what has worked and what has failed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gradguard.learning_rate import largest_rate, on_a_device
from lightning_gradguard.policy.act import Act
from lightning_gradguard.policy.rate_bracket import RateBracket
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext


class LearningRateBackoff(Remedy):
    """Lower the learning rate during the update, and put it back afterwards.

    Schedulers never see it: the lower rate is on ``param_groups`` only between the gradient's arrival and the end of
    the update, so recursive schedulers (StepLR, OneCycleLR, ...) and those that write absolute rates (LambdaLR,
    CosineAnnealingWarmRestarts, ...) all keep their own state. Groups keep their proportions.

    Which rate, is the business of a :class:`~lightning_gradguard.policy.RateBracket`: below the smallest that lost the
    run, above the largest it has learned with, climbing while the loss falls, never above the schedule, and free again
    when calm has lasted. Where it is still held down near the end of a run whose length is known, it cools down.

    Where updates grow with the gradient, those that would replace weights (a tenth of a matrix) are clipped from then
    on, at any rate.
    """

    name: ClassVar[str] = "backoff"
    acts: ClassVar[frozenset[str]] = frozenset({Act.BACKOFF})

    def __init__(self) -> None:
        self.bracket = RateBracket()
        self._factor = 1.0
        # Whether gradients are clipped whose updates would replace weights.
        self._clips = False
        # The bracket as it was before the trouble at hand was treated.
        self._untreated = self.bracket.state_dict()
        self._applied: list[tuple[dict[str, Any], Any]] = []

    @property
    def deferrable(self) -> bool:  # type: ignore[override]
        """Whether :meth:`before_update` can do without the norm of the step at hand: not while it may have to clip."""
        return not self._clips

    @property
    def factor(self) -> float:
        """Factor on the largest rate at the last update."""
        return self._factor

    @property
    def rate_factor(self) -> float:
        """Factor on the learning rate now."""
        return self._factor

    @property
    def cooled(self) -> float:
        """Share of the lower rate that is in use in its cool-down."""
        return 1.0 if self.bracket.free else self.bracket.cooled

    def rate(self, scheduled: float) -> float:
        """Return the rate that the next update is made with."""
        return scheduled if self.in_effect else scheduled * self.bracket.share(scheduled)

    def apply(self, context: RemedyContext) -> Outcome:
        """Convict the rate that the run was lost with, and choose the next."""
        scheduled = largest_rate(context.optimizer)
        if not scheduled > 0.0:
            return Outcome(self.name, False, f"the learning rate is {scheduled:.3g}, and cannot be lowered")
        if not context.treated or self.bracket.free:
            self._untreated = self.bracket.state_dict()
        if Act.INITIALIZE in context.acts:
            self.bracket.begin(scheduled)
            self._factor = self.bracket.share(scheduled)
            return Outcome(self.name, True, f"learning rate {self.bracket.in_use:.3g}, to climb to {scheduled:.3g}")
        before = scheduled * self.bracket.share(scheduled)
        self._clips = self._clips or 0.0 < context.reach(before) < float("inf")
        after = self.bracket.convict(before, context.update_ratio)
        self._factor = self.bracket.share(scheduled)
        return Outcome(self.name, True, f"learning rate {after:.3g}, after {before:.3g} had lost the run")

    def give_up(self) -> None:
        """Go on at the rate from before the trouble, since a lower one has not helped: mostly that of the schedule."""
        self.bracket.load_state_dict(self._untreated)
        self._clips = False
        if self.bracket.free:
            self._factor = 1.0

    def known_rates(self) -> tuple[float, float]:
        """Return the bracket's bounds."""
        return self.bracket.good, self.bracket.bad

    def before_update(self, context: RemedyContext) -> None:
        """Put the lower rate on the groups for this update, and let the bracket learn of it."""
        self.after_update()
        bracket, known = self.bracket, None
        if bracket.free and bracket.bad == float("inf"):
            rate = context.statistics.rate
            if bracket.good > 0.0 and (rate is None or not rate > bracket.good):
                if self._clips:
                    self._clip(context, largest_rate(context.optimizer))
                return  # As in nearly every step.
            # A schedule that is followed as it is need not be known before the update: from a device it would be
            # waited for.
            known = rate if on_a_device(context.optimizer) else None
        scheduled = largest_rate(context.optimizer) if known is None else known
        best, learned, worse = context.progress()
        left = 1.0 if context.remaining is None else context.remaining()
        share = self._factor = bracket.next_share(
            scheduled, best=best, learned=learned, worse=worse, left=left, clipped=self._clips
        )
        if self._clips:
            self._clip(context, scheduled * share)
        if share == 1.0:
            return
        for group in context.optimizer.param_groups:
            rate = group.get("lr")
            if rate is None:
                continue
            if isinstance(rate, Tensor):
                # A capturable optimizer reads this very tensor, so it is changed in place; only once, since groups
                # may share it.
                if not any(rate is known["lr"] for known, _ in self._applied):
                    self._applied.append((group, rate.clone()))
                    rate.mul_(share)
            else:
                self._applied.append((group, rate))
                group["lr"] = rate * share

    @torch.no_grad()
    def _clip(self, context: RemedyContext, rate: float) -> None:
        """Clip a gradient whose update would replace weights at this rate."""
        allowed, norm = context.reach(rate), context.statistics.norm
        if 0.0 < allowed < norm < float("inf"):
            torch._foreach_mul_([p.grad for p in context.parameters.values() if p.grad is not None], allowed / norm)

    @property
    def in_effect(self) -> bool:
        """Whether the rates are lowered at this moment, for an update that is about to be made."""
        return bool(self._applied)

    def after_update(self) -> None:
        """Put the rates back as the scheduler left them."""
        if not self._applied:
            return  # As after nearly every step, where entering no_grad would cost more than all else here.
        with torch.no_grad():
            for group, rate in self._applied:
                if isinstance(group["lr"], Tensor) and isinstance(rate, Tensor):
                    group["lr"].copy_(rate)
                else:
                    group["lr"] = rate
        self._applied.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the bracket, and the factor of the last update."""
        known = self.bracket.state_dict()
        return {**known, "factor": self._factor, "clips": self._clips, "untreated": dict(self._untreated)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.bracket.load_state_dict(state)
        self._factor, self._clips = float(state["factor"]), bool(state["clips"])
        self._untreated = {key: float(value) for key, value in state["untreated"].items()}
