"""Statistics of layers as 16-bit *codes*, :data:`CODES` to a doubling.

That is the resolution of the half floats they arrive in; a maximum over them is a vector instruction, over half floats
it is not; and the page draws them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .wire import ZERO

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int16]
Halves = npt.NDArray[np.float16]
Counts = npt.NDArray[np.uint8]

CODES = 128
"""Codes per doubling. A half float between 8 and 16 has steps of 1/128."""
MISSING = -32768
"""The code of "nothing measured"."""
ZERO_CODE = int(ZERO * CODES)


def encode(log2: npt.NDArray[np.floating]) -> Codes:
    """Turn log2 values into codes; NaN becomes :data:`MISSING`.

    >>> encode(np.array([0.0, 1.5, np.nan])).tolist()
    [0, 192, -32768]
    """
    with np.errstate(invalid="ignore"):
        scaled = np.rint(np.asarray(log2, np.float32) * np.float32(CODES))
    return np.where(np.isnan(scaled), np.float32(MISSING), np.clip(scaled, -32767, 32767)).astype(np.int16)


# There are only 65,536 half floats: looking codes up is ten times faster than computing them for 20 million values.
HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
CODE_OF = encode(HALVES)
COUNT_OF = np.clip(np.nan_to_num(HALVES, nan=1.0, posinf=255.0), 0, 255).astype(np.uint8)


def halves(peaks: Floats, nonfinite: Floats) -> Halves:
    """Return what the guard writes of one window's layers, shape ``(2, layers)``.

    These are log2 of the peaks and counts of non-finite steps.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log2 = np.nan_to_num(np.log2(peaks), nan=ZERO, posinf=1024.0, neginf=ZERO).clip(min=ZERO)
        return np.stack([log2, np.minimum(np.nan_to_num(nonfinite), 65504.0)]).astype(np.float16)


def spread(halves: Halves, mine: Sequence[str], names: Sequence[str], *, absent: float = 0.0) -> Halves:
    """Put payloads of one list of layers, shape ``(m, 2, len(mine))``, in the places of another.

    NaN and ``absent`` where it has none.
    """
    if tuple(mine) == tuple(names):
        return halves
    place = {name: i for i, name in enumerate(names)}
    wide = np.empty((len(halves), 2, len(names)), np.float16)
    wide[:, 0], wide[:, 1] = np.nan, absent
    wide[:, :, [place[name] for name in mine]] = halves
    return wide
