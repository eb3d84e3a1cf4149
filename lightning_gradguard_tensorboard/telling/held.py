"""A learning rate that is held below what the user wrote, and whether that is so low that little is learned."""

from __future__ import annotations

from dataclasses import dataclass

from .words import short

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
    """

    factor: float
    since: int
    rate: float
    good: float | None

    @property
    def slow(self) -> bool:
        """Whether the run may learn slowly: far below what has worked, or where nothing is known to have."""
        return self.good is None or self.rate < QUARTER * self.good


def held_back(held: Held) -> str:
    """Say that the rate is held, how it compares with what has worked, and what follows from that.

    >>> held_back(Held(5e-4, 401, 1e-5, 0.02))
    'the learning rate is held at 1/2,000 of the schedule since step 401, which is 1/2,000 of the largest that the run \
is known to have learned with: it may learn slowly, so lower the rate yourself, or mend what made it too high'
    """
    told = f"the learning rate is held at {_part(held.factor)} of the schedule since step {held.since:,}"
    if held.good is None:
        why = ", and the run is not known to have learned with any"
    else:
        share = held.rate / held.good
        part = f"{share:.0%}" if share >= 0.1 else _part(share)
        why = f", which is {part} of the largest that the run is known to have learned with"
    if held.slow:
        return f"{told}{why}: it may learn slowly, so lower the rate yourself, or mend what made it too high"
    return f"{told}{why}, so it goes on learning"


def _part(share: float) -> str:
    return f"1/{short(float(f'{1 / share:.2g}'))}"
