"""Learning-rate back-off that no scheduler undoes: held, then recovered gradually, permanent when trouble returns."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gradguard import checks
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, Scene

LEAST_SHARE = 0.05
"""Share of the present rate below which the rate of a young snapshot is not heeded: a warm-up's first rate may be zero."""
YOUNG = 32
"""Steps below which a snapshot is young."""


def largest_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest learning rate of the optimizer's groups: one that leaps is seen by it, one that is frozen at 0 hides nothing."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


class LearningRateBackoff(Remedy):
    """Multiply the learning rate by a factor during the update, and put it back afterwards.

    Schedulers never see the factor: it is on ``param_groups`` only between the gradient's arrival and the end of the
    update, so recursive schedulers (StepLR, OneCycleLR, ...) and those that write absolute rates (LambdaLR,
    CosineAnnealingWarmRestarts, ...) all keep their own state.

    After ``hold`` steps the factor recovers exponentially, over about ``recover`` steps, to its ceiling. The ceiling is
    1 after the first trouble. When trouble returns at a factor c, rates of c have proved too high, so the
    ceiling becomes permanent, half way (in log) between c and the new factor. A rate that was insane from the start
    (its first updates were a good part of the weights) does not recover at all: what it was brought down to is the largest sane one.

    A schedule that ramps up would undo a mere factor, so the rate itself is capped as well, at what it was when the
    factor was set, and the cap is lifted as the factor recovers. Weights that were rolled back also get back no more than
    the rate they had lived with. A rate that leaps in mid-run is held to the largest that the run has lived with, which then
    doubles in ``recover`` steps: a leap becomes a warm-up.

    Args:
        hold: Steps for which the factor is held.
        recover: Steps over which a halved rate is doubled again.
        min_factor: The factor never falls below this, unless the schedule has made it necessary before.
    """

    name: ClassVar[str] = "backoff"
    late: ClassVar[bool] = True

    def __init__(self, *, hold: int = 100, recover: int = 500, min_factor: float = 1e-5) -> None:
        self.hold = checks.whole("hold", hold)
        self.recover = checks.whole("recover", recover, least=1)
        self.min_factor = checks.number("min_factor", min_factor, above=0.0, most=1.0)
        self.factor = 1.0
        self.ceiling = 1.0
        self.cap = math.inf
        self.lived = math.inf
        self._held = 0
        self._used = 0
        # What the last back-offs changed, as long as no update has come after them.
        self._unused: list[float] | None = None
        self._applied: list[tuple[dict[str, Any], Any]] = []

    def apply(self, scene: Scene) -> Outcome:
        """Lower the factor by what was decided; a factor of 1 takes back what no update has used yet."""
        decision = scene.decision
        if scene.verdict is not None and scene.verdict.form == "rate":
            self.lived, self._held = scene.verdict.limit, self.hold
            return Outcome(self.name, True, f"learning rate held at {self.lived:.3g}")
        if decision is not None and decision.factor >= 1.0:
            return self._take_back()
        if self._unused is None:
            self._unused = [self.factor, self.ceiling, self.cap, float(self._used)]
        asked = min(decision.factor, 1.0) if decision is not None else 0.5
        rate = largest_rate(scene.optimizer)
        before = min(self.factor, self.cap / rate) if rate > 0 else self.factor
        start = before
        if decision is not None and "rollback" in decision.remedies and scene.snapshots.latest is not None and rate > 0:
            snapshot = scene.snapshots.latest
            lived_with = float(snapshot.extra.get("rate", math.inf)) / rate
            least = LEAST_SHARE * before if snapshot.step < YOUNG else 0.0
            start = min(before, max(lived_with, least))
        # Under a schedule that ramps up without end even the smallest factor may be more than the cap has left.
        self.factor = max(start * asked, min(self.min_factor, before))
        self.cap = rate * self.factor if rate > 0 else math.inf
        if decision is not None and decision.permanent:
            self.ceiling = min(self.ceiling, self.factor)
        elif self._used:
            self.ceiling = (before * self.factor) ** 0.5
        self._used += 1
        self._held = self.hold
        return Outcome(self.name, True, f"learning rate x {self.factor:.3g} (was x {before:.3g})")

    def _take_back(self) -> Outcome:
        if self._unused is None:
            return Outcome(self.name, False, "there is nothing to take back")
        self.factor, self.ceiling, self.cap, used = self._unused
        self._used, self._held, self._unused = int(used), 0, None
        return Outcome(self.name, True, f"learning rate back at x {self.factor:.3g}: it was not at fault")

    def before_update(self, scene: Scene) -> None:
        """Put the factor on the rates of this update, then let it recover a little."""
        self.after_update()
        self._unused = None
        if self.factor >= 1.0 and self.lived == math.inf:
            return
        largest = largest_rate(scene.optimizer)
        for group in scene.optimizer.param_groups:
            rate = group["lr"]
            factor = self.share(float(rate), largest)
            if isinstance(rate, Tensor):
                # A capturable optimizer reads this very tensor, so it is changed in place; only once, since groups
                # may share it.
                if not any(rate is known["lr"] for known, _ in self._applied):
                    self._applied.append((group, rate.clone()))
                    rate.mul_(factor)
            else:
                self._applied.append((group, rate))
                group["lr"] = rate * factor
        self._recover(largest)

    @property
    def in_effect(self) -> bool:
        """Whether the rates are lowered at this moment, for an update that is about to be made."""
        return bool(self._applied)

    def share(self, rate: float, largest: float | None = None) -> float:
        """Return the factor that a rate of the schedule's would get, where ``largest`` is that of all groups; by default it is."""
        if rate <= 0.0:
            return self.factor
        cap = self.cap if self.factor < 1.0 else math.inf
        # Groups keep their proportions, but for one that leapt by itself.
        return min(self.factor, cap / (largest or rate), self.lived / rate)

    def _recover(self, largest: float) -> None:
        if self.lived >= largest:
            self.lived = math.inf  # The schedule has come back to its senses.
        if self._held > 0:
            self._held -= 1
            return
        growth = 2.0 ** (1.0 / self.recover)
        self.factor = min(self.factor * growth, self.ceiling)
        self.cap = math.inf if self.factor >= 1.0 else self.cap * growth
        self.lived *= growth

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
        """Return factor, ceiling and how long they hold."""
        return {
            "factor": self.factor,
            "ceiling": self.ceiling,
            "cap": self.cap,
            "lived": self.lived,
            "held": self._held,
            "used": self._used,
            "unused": list(self._unused or ()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.factor, self.ceiling = float(state["factor"]), float(state["ceiling"])
        self.cap, self.lived = float(state["cap"]), float(state["lived"])
        self._held, self._used = int(state["held"]), int(state["used"])
        self._unused = [float(v) for v in state["unused"]] or None
