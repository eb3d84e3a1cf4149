"""The ladder: for each cause the treatments that are tried, one after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.policy.act import EVERY, FIRST_AID, Act

Treatment = tuple[Act, ...]

REPAIR: Treatment = (Act.REINITIALIZE,)
BACK: Treatment = (Act.ROLLBACK,)
SLOWER: Treatment = (Act.ROLLBACK, Act.BACKOFF)
CLEAR: Treatment = (Act.ROLLBACK, Act.CLEAR)
TUNE: Treatment = (Act.ROLLBACK, Act.TUNE)
REDRAW: Treatment = (Act.ROLLBACK, Act.INITIALIZE, Act.BACKOFF)

START: dict[Cause, tuple[Treatment, ...]] = {
    Cause.LAYER: (REPAIR, REDRAW, SLOWER),
    Cause.START: (REDRAW, SLOWER, REDRAW),
    Cause.ACTIVATION: (REDRAW, SLOWER, REDRAW),
    Cause.LOSS: (REDRAW, REDRAW),
    Cause.RATE: (SLOWER, REDRAW),
    Cause.UNKNOWN: (SLOWER, REDRAW),
    Cause.OPTIMIZER: (BACK, SLOWER),
    Cause.STALE: (CLEAR, SLOWER),
    Cause.SETTINGS: (TUNE, SLOWER, REDRAW),
}
"""For a run that is fresh from its initialisation, with the copy of its first step at hand."""

UNDER_WAY: dict[Cause, tuple[Treatment, ...]] = {
    Cause.LAYER: (REPAIR, BACK, SLOWER),
    Cause.START: (SLOWER,),
    Cause.ACTIVATION: (BACK, SLOWER),
    Cause.LOSS: (BACK, SLOWER),
    Cause.RATE: (SLOWER,),
    Cause.UNKNOWN: (BACK, SLOWER),
    Cause.OPTIMIZER: (BACK, SLOWER),
    Cause.STALE: (CLEAR, SLOWER),
    Cause.SETTINGS: (TUNE, BACK, SLOWER),
}
"""For a run that has learned something, or that was not fresh when it began: nothing is drawn anew."""
AT_START = {
    Cause.LAYER: "a layer stands out from its first step",
    Cause.START: "the initialisation, or the scale of what it meets, is at fault as a whole",
    Cause.ACTIVATION: "a function inside the network turns finite numbers into inf or NaN",
    Cause.LOSS: "the loss is not finite for finite outputs: their scale is at fault, or the loss",
    Cause.RATE: "no layer stands out: the rate is too high",
}
"""What is said of a run that is bad from its first step, by its cause."""


def treatments(cause: Cause, *, start: bool) -> tuple[Treatment, ...]:
    """Return the treatments of a cause in order; none for what only first aid, or nobody here, can help."""
    return (START if start else UNDER_WAY).get(cause, ())


def possible(cause: Cause, can: Collection[str], *, start: bool) -> list[Treatment]:
    """Return the treatments that can be made in full: of one that needs more than a rollback, more must be possible.

    Args:
        cause: What is at fault.
        can: What can be done: acts, and the names of remedies that do none of them.
        start: Whether the run is fresh from its initialisation.
    """
    rows = treatments(cause, start=start)
    return [row for row in rows if strangers(can) or (set(row) - {Act.ROLLBACK}) & set(can) or row == BACK]


def strangers(can: Collection[str]) -> list[str]:
    """Return the remedies that the ladder does not know, in one order on all processes; they stand in for its own."""
    return sorted(set(can) - EVERY)


def available(called_for: Sequence[str], can: Collection[str]) -> tuple[str, ...]:
    """Drop what is switched off; a step that was to be skipped or clipped falls back to the other of the two.

    Remedies that the ladder does not know come last, where a treatment is called for, or would be if it were switched
    on: first aid to a single batch stays without consequences.
    """
    chosen = [word for word in called_for if word in can]
    for wanted, other in ((Act.SKIP, Act.CLIP), (Act.CLIP, Act.SKIP)):
        if wanted in called_for and wanted not in can and other in can:
            chosen.append(other)
    if not FIRST_AID.issuperset(called_for):
        chosen += strangers(can)
    return tuple(chosen)
