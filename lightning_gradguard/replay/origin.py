"""Where in a walk the trouble begins.

The first operation that made a NaN or inf, or else the one at which magnitudes leap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradguard.replay.operation import Operation

LEAP_OF_OPERATION = 10.0
"""Times that a magnitude has to grow in one operation to be called a leap."""


def origin(walked: Sequence[Operation], fine: Sequence[Operation] = ()) -> Operation | None:
    """Return the operation at which a step goes wrong, or None where none stands out.

    Args:
        walked: The operations of the step, in order.
        fine: Those of a step that was fine; what it made of NaN and inf too is harmless, as where a mask is.
    """
    harmless = {one.key for one in fine if one.made}
    made = next((one for one in walked if one.made and one.key not in harmless), None)
    if made is not None or any(one.output.nan or one.output.inf for one in walked if one.key not in harmless):
        return made  # Or nobody made it: it came in with the batch, or is in the weights.
    for phase in ("forward", "backward"):
        part = [one for one in walked if one.phase == phase]
        found = _beside([one for one in fine if one.phase == phase], part) if fine else _alone(part)
        if found is not None:
            return found
    return None


def _beside(fine: Sequence[Operation], walked: Sequence[Operation]) -> Operation | None:
    """Return the first operation that grows, against a step that was fine, by half of the whole in logarithms."""
    if [one.name for one in fine] != [one.name for one in walked]:
        return _alone(walked)
    grown = [_grown(a.output.peak, b.output.peak) for a, b in zip(fine, walked, strict=True)]
    most = max(grown, default=1.0)
    if not most >= LEAP_OF_OPERATION:
        return None
    return next((one for one, times in zip(walked, grown, strict=True) if times >= math.sqrt(most)), None)


def _grown(before: float, after: float) -> float:
    return after / before if before > 0.0 and math.isfinite(after) else 1.0


def _alone(walked: Sequence[Operation]) -> Operation | None:
    """Return the operation with the largest gain, if it is a leap."""
    largest = max(walked, key=lambda one: one.gain, default=None)
    return largest if largest is not None and largest.gain >= LEAP_OF_OPERATION else None
