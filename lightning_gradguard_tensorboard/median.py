"""Each layer's own running median: what its norm is compared with.

It is taken over blocks of windows, so that its cost does not grow with the run.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .codes import MISSING, ZERO_CODE, Codes, Integers

MEDIAN_BLOCKS = 400
SAMPLES_PER_BLOCK = 8


def running_median(codes: Codes, calm: npt.NDArray[np.bool_]) -> tuple[Integers, Codes]:
    """Return each layer's median over the past twelfth of the run, so that warm-up and slow decay do not tint the map.

    Windows that left the band do not vote: an incident must not become its own yardstick. Nor do zeros and missing
    values. Where nothing votes, the last median known stands. The first blocks, with no past, are judged by each other.

    Args:
        codes: Shape ``(n, layers)``.
        calm: Whether each window may vote, shape ``(n,)``.

    Returns:
        The end index of each block, shape ``(b,)``, and the medians, shape ``(b, layers)``.
    """
    n, layers = codes.shape
    blocks = min(n, MEDIAN_BLOCKS)
    ends = (np.arange(1, blocks + 1) * n) // max(blocks, 1)
    if not n:
        return ends, np.zeros((0, layers), np.int16)
    starts = np.concatenate([[0], ends[:-1]])
    pick = starts[:, None] + (np.arange(SAMPLES_PER_BLOCK) * (ends - starts)[:, None]) // SAMPLES_PER_BLOCK
    per_block = median(np.where(calm[pick][..., None], codes[pick], np.int16(MISSING)))
    reach = min(max(blocks // 12, 9), blocks)
    head = min(reach // 2 + 1, blocks)
    baseline = np.empty((blocks, layers), np.int16)
    # Block i is judged by the `reach` blocks before it; the first ones by each other. In a long run some neighbours
    # share a median.
    now, every = median(per_block[None, :head])[0], max(1, reach // 8)
    for block in range(blocks):
        if block >= head and (block - head) % every == 0:
            now = median(per_block[None, max(0, block - reach) : block])[0]
        baseline[block] = np.where((now == MISSING) & (block > 0), baseline[block - 1], now)
    unknown = baseline == MISSING
    first_known = np.take_along_axis(baseline, np.argmin(unknown, axis=0)[None], axis=0)
    return ends, np.where(unknown, first_known, baseline).astype(np.int16)


def median(codes: Codes) -> Codes:
    """Return the lower median along axis 1 of what votes; :data:`MISSING` where nothing does."""
    silent = codes <= ZERO_CODE
    ordered = np.sort(np.where(silent, np.int16(32767), codes), axis=1)
    votes = codes.shape[1] - silent.sum(axis=1, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(votes - 1, 0) // 2, axis=1)
    return np.where(votes > 0, middle, MISSING)[:, 0].astype(np.int16)
