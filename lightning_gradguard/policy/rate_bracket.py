"""The learning rate as a bracket: the largest rate that the run has learned with, and the smallest that lost it."""

from __future__ import annotations

import math
from typing import Any

DESCENT = 8.0
"""Times below a rate that lost the run at which it is tried again, at least, where no good rate is known."""
HEALTHY = 0.05
"""Update-to-weight ratio that such a rate is brought down to; healthy training shows 1e-4 to 1e-1."""
FARTHEST = 1000.0
"""Times that one conviction lowers the rate at most."""
CLIMB = 1.05
"""Growth of the rate per update while the loss is at its best: a doubling, below what failed, in fifteen."""
STALE = 16
"""Updates without a better loss after which the rate, which climbed too far, is halved: down to where it began, and
below where the loss is worse than it was."""
BELOW = 0.25
"""Share of the smallest rate that failed up to which the rate climbs; all of it where no update can replace weights."""
WAIT = 100
"""Calm updates before the upper bound is loosened for the first time; each conviction after that doubles the wait."""
DOUBLING = 500
"""Calm updates in which a bound that is being loosened doubles."""
COOL_DOWN = 0.2
"""Share of the run, at its end, in which a rate that is held down falls to nothing: the largest rate that works leaves
noise behind, which a fifth of the run at a falling one takes away (Hägele et al., 2024)."""


class RateBracket:
    """Choose the rate between what has worked and what has failed: absolute rates, of the largest parameter group.

    Attributes:
        good: Largest effective rate at which the loss has fallen; 0 if none is known.
        bad: Smallest effective rate that lost the run; inf if none did.
        in_use: What no update may exceed now; inf if the schedule is free.
        cooled: Share of that in the cool-down near the end of a run; told anew for each update.
    """

    def __init__(self) -> None:
        self.good = 0.0
        self.bad = self.in_use = math.inf
        self._floor = self._asked = 0.0
        self._wait = WAIT
        self._calm = self._stale = 0
        self.cooled = 1.0

    @property
    def free(self) -> bool:
        """Whether the schedule is followed as it is."""
        return self.in_use == math.inf

    def share(self, rate: float) -> float:
        """Return what a rate of the schedule is multiplied by, at most 1."""
        return min(1.0, self.in_use * self.cooled / rate) if rate > 0.0 and not self.free else 1.0

    def next_share(
        self,
        scheduled: float,
        *,
        best: bool,
        learned: bool,
        worse: bool = False,
        left: float = 1.0,
        clipped: bool = False,
    ) -> float:
        """Return what a rate of the schedule is multiplied by for the next update, and note that this is made.

        Args:
            scheduled: The rate of the schedule.
            best: Whether the loss is at the best level that was reached.
            learned: Whether that is below what it was before training, beyond chance.
            worse: Whether the loss has been above the best level for some time, beyond chance.
            left: Share of the run that is left, from 0 to 1; 1 where its length is unknown.
            clipped: Whether updates that would replace weights are clipped from now on.
        """
        self.follow(scheduled)
        self.cooled = min(1.0, left / COOL_DOWN)
        share = self.share(scheduled)
        self.made(scheduled * share, best=best, learned=learned, worse=worse, clipped=clipped)
        return share

    def convict(self, rate: float, ratio: float = 0.0) -> float:
        """Note that a rate lost the run, and return the one to try next: one that it has learned with, or far below.

        Args:
            rate: The effective rate.
            ratio: Largest update-to-weight ratio that was measured at it; 0 if unknown.
        """
        if not rate > 0.0:
            return self.in_use
        if self._calm > self._wait:
            self._wait *= 2  # it was loosened, and has failed again
        self._calm = 0
        self.bad, self._asked = min(self.bad, rate), max(self._asked, rate)
        # The size of updates tells how far beyond health a rate was that nothing was ever learned with.
        descent = max(DESCENT, min(ratio / HEALTHY, FARTHEST))
        if self.good > 0.0:
            descent = math.sqrt(DESCENT * descent)  # Something speaks for the rate, too.
        if self.good >= self.bad:
            self.good = 0.0  # The run was lost at what it had learned with, which is no proof any more.
        below = self.bad / descent
        self.in_use = self._floor = min(self.good or below, BELOW * self.bad)
        self._stale = 0
        return self.in_use

    def begin(self, scheduled: float) -> None:
        """Begin anew well below the schedule, free to climb up to it: what was seen had another cause."""
        self.good, self.bad, self._asked = 0.0, scheduled / BELOW, scheduled
        self.in_use = self._floor = scheduled / DESCENT
        self._calm = self._stale = 0

    def acquit(self) -> None:
        """Strike out what convicted the rate: something else was at fault."""
        self.bad = self.in_use = math.inf
        self._calm = 0

    def made(self, rate: float, *, best: bool, learned: bool, worse: bool = False, clipped: bool = False) -> None:
        """Note an update that was made at this effective rate, and climb or loosen.

        Args:
            rate: The rate it was made with.
            best: Whether the loss is at the best level that was reached.
            learned: Whether that is below what it was before training, beyond chance.
            worse: Whether the loss has been above the best level for some time, beyond chance.
            clipped: Whether updates that would replace weights are clipped from now on, so that what lost the run at
                the smallest rate that failed cannot come again.
        """
        if best and learned:
            self.good = max(self.good, min(rate, self.bad))
        if self.bad == math.inf:
            return
        self._calm += 1
        self._stale = 0 if best else self._stale + 1
        top = self.bad if clipped else BELOW * self.bad
        if best and self.in_use < top:
            self.in_use = min(self.in_use * CLIMB, top)
        elif self._stale >= STALE:
            # Where it began was only a guess, which a loss that has come to be worse speaks against.
            floor = self._floor / DESCENT if worse else self._floor
            self.in_use, self._stale = max(0.5 * self.in_use, min(floor, self.in_use)), 0
        if self._calm > self._wait:
            growth = 2.0 ** (1.0 / DOUBLING)
            self.bad *= growth
            self._floor *= growth
            self.in_use *= growth

    def follow(self, scheduled: float) -> None:
        """Let go of the schedule once the bound has been loosened to the largest rate that it has asked for since."""
        if self.bad == math.inf:
            return
        self._asked = max(self._asked, scheduled)
        if self.in_use >= self._asked > 0.0:
            self.bad = self.in_use = math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return the bounds and how long they hold."""
        return {
            "good": self.good,
            "bad": self.bad,
            "in_use": self.in_use,
            "floor": self._floor,
            "asked": self._asked,
            "wait": self._wait,
            "calm": self._calm,
            "stale": self._stale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.good, self.bad, self.in_use = float(state["good"]), float(state["bad"]), float(state["in_use"])
        self._floor, self._asked = float(state["floor"]), float(state["asked"])
        self._wait, self._calm, self._stale = int(state["wait"]), int(state["calm"]), int(state["stale"])
