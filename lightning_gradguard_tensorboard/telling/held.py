"""A learning rate that is held below what the user wrote, and whether that is so low that little is learned."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .record import Record, actions_of, applied, integer, number
from .words import short

_LOWERED_TO = re.compile(r"learning rate ([\d.e+-]+)")

QUARTER = 0.25
"""The share of a rate that has worked at which the guard begins to search below it.

Below that share of the schedule the rate is held, and below that share of the largest rate that the run has learned
with, the search has gone on to rates of which nobody knows whether the run learns with them.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """How the rate is held at the end of what is known of a run.

    Args:
        factor: What the schedule's rate is multiplied by.
        since: The step since which it is below the schedule's.
        rate: The rate in use.
        good: The largest rate that the run is known to have learned with, the dashed line of the strip; None if none.
        began: The rate to which it was lowered at first; NaN where nothing tells.
        eased: How often it was halved since, where it had climbed too far.
        cools: Whether it cools down, since the run is near its end; the other numbers are those without it.
    """

    factor: float
    since: int
    rate: float
    good: float | None
    began: float = math.nan
    eased: int = 0
    cools: bool = False

    @property
    def slow(self) -> bool:
        """Whether the run may learn slowly: far below what has worked, or where nothing is known to have."""
        return self.good is None or self.rate < QUARTER * self.good


def held_back(held: Held) -> str:
    """Say from what to what the rate was lowered and has climbed, how that compares, and what follows from it.

    >>> held_back(Held(1 / 450, 403, 0.0133, 0.02, 0.005, 3))
    'the learning rate was lowered to 0.005 at step 403 and has climbed to 0.0133 by now, halved 3 times on the way \
where it had climbed too far: that is 450 times below the schedule; the run has learned with up to 0.02, so it goes on \
learning'
    >>> held_back(Held(1 / 450, 403, 0.0133, 0.02, 0.005, cools=True))[:104]
    'the learning rate was lowered to 0.005 at step 403 and has climbed to 0.0133 before its cool-down at the'
    >>> held_back(Held(5e-4, 401, 1e-5, 0.02, 1e-5))
    'the learning rate was lowered to 1e-5 at step 401 and is still there: that is 2,000 times below the schedule, and \
far below 0.02, with which the run has learned: it may learn slowly, so lower the rate yourself, or mend what made it \
too high'
    """
    told = f"the learning rate was lowered{_to(held.began)} at step {held.since:,} and {_since(held)}{_eased(held)}"
    told = f"{told}: that is {short(float(f'{1 / held.factor:.2g}'))} times below the schedule"
    if held.slow:
        than = "not known to be a rate with which the run learns"
        than = than if held.good is None else f"far below {short(held.good)}, with which the run has learned"
        return f"{told}, and {than}: it may learn slowly, so lower the rate yourself, or mend what made it too high"
    return f"{told}; the run has learned with up to {short(held.good or 0.0)}, so it goes on learning"


def lowered_to(record: Record) -> list[tuple[int, float]]:
    """Return the steps at which treatments have lowered the rate, and to what."""
    made = [(integer(action.get("step")), one) for action in actions_of(record) for one in applied(action)]
    told = [(step, _LOWERED_TO.match(str(one.get("detail")))) for step, one in made if one.get("remedy") == "backoff"]
    return [(step, rate) for step, found in told if found and not math.isnan(rate := number(found[1]))]


def _to(rate: float) -> str:
    return f" to {short(rate)}" if math.isfinite(rate) else ""


def _since(held: Held) -> str:
    if short(held.began) == short(held.rate):
        return "is still there"
    now = "before its cool-down at the end of the run" if held.cools else "by now"
    return f"{'has climbed to' if held.rate > held.began else 'is at'} {short(held.rate)} {now}"


def _eased(held: Held) -> str:
    if not held.eased:
        return ""
    return f", halved {'once' if held.eased == 1 else f'{held.eased:,} times'} on the way where it had climbed too far"
