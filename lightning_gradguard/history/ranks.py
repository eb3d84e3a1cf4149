"""Comparing losses by ranks, so that their sign, scale and tails do not matter."""

from __future__ import annotations

import math
from collections.abc import Sequence


def chance_of_lower(losses: Sequence[float], others: Sequence[float]) -> float:
    """Return the probability that ``losses`` lie this far below ``others`` by chance, if both were of one kind.

    One-sided Mann-Whitney U test (Mann and Whitney, 1947), by the normal approximation with corrections for ties and
    continuity. A NaN ranks as the worst. Returns 1.0 where either is empty.
    """
    n, m = len(losses), len(others)
    if not n or not m:
        return 1.0
    pooled = [(math.inf if math.isnan(v) else v, mine) for mine, values in ((1, losses), (0, others)) for v in values]
    pooled.sort()
    rank_sum, ties, start = 0.0, 0.0, 0
    while start < n + m:
        end = start
        while end < n + m and pooled[end][0] == pooled[start][0]:
            end += 1
        rank_sum += 0.5 * (start + 1 + end) * sum(mine for _, mine in pooled[start:end])
        ties += float(end - start) ** 3 - (end - start)
        start = end
    u = rank_sum - 0.5 * n * (n + 1)
    total = n + m
    variance = n * m / 12.0 * (total + 1 - ties / (total * (total - 1.0)))
    if not variance > 0.0:
        return 1.0
    return 0.5 * math.erfc(-(u + 0.5 - 0.5 * n * m) / math.sqrt(2.0 * variance))
