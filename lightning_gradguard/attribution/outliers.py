"""When one number stands out from its peers: the median and MAD of the others, in logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

# Gains of up to sqrt(2), and weights of up to sqrt(2) times what the fan calls for, are what healthy initialisations
# give; trained layers reach 2 to 4. A layer is bad by itself from 8 on, which compounds to overflow within a few
# layers, and against its peers from 1.5 on, where signals begin to grow at all.
_CERTAIN = math.log(8.0)
_GROWING = math.log(1.5)
# Twice as large as the peers is common; 2.5 is not. Further from the peers, less in itself is asked for: the two
# together make 6.
_OUTLYING_LOG = math.log(2.5)
_TOGETHER = math.log(6.0)
# Smaller than this is harmless however it is spread, and must not make healthy layers look large (zero-initialised
# branches).
_HARMLESS = math.log(0.3)
# Spread that peers have at the least, as a log-MAD; four of it make a factor of 1.8. Two peers tell little about
# spread.
_SPREAD, _SPREAD_OF_FEW = 0.15, 0.3
_OUTLYING_SIGMAS = 4.0
# What several layers share is how the model was made (the squeeze layers of an EfficientNet, at 5 times the others), no
# accident.
_DESIGN = 0.15


def typical(others: Sequence[float]) -> tuple[float, float]:
    """Return median and robust spread (1.4826 x MAD, bounded below) of log values; the peer of a lone layer is 1.0."""
    if not others:
        return 0.0, _SPREAD_OF_FEW
    centre = median(others)
    spread = 1.4826 * median(abs(value - centre) for value in others)
    return centre, max(spread, _SPREAD if len(others) >= 3 else _SPREAD_OF_FEW)


def stands_out(value: float, others: Sequence[float]) -> float | None:
    """Return by how much (in log units) ``value`` is too large against its peers and in itself, None if it is not.

    Args:
        value: Log of a ratio whose healthy value is about 1.
        others: The same of its peers, itself left out.
    """
    centre, spread = typical([max(other, _HARMLESS) for other in others])
    apart = value - centre
    alike = sum(other >= value - _GROWING for other in others)
    rare = alike < max(3.0, _DESIGN * len(others))
    far = apart >= _OUTLYING_LOG and apart >= _OUTLYING_SIGMAS * spread
    peerwise = rare and far and value >= _GROWING and apart + value >= _TOGETHER
    return max(apart, value) if peerwise or value >= _CERTAIN else None
