"""What the page is sent of a stretch of a run, in binary.

JSON would be three times the size for a thousand layers, and has no inf.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from .codes import CODES, Codes, Floats
from .thinning import View


def view(seen: View, start: float, end: float, *, sampled: bool = False) -> bytes:
    """Pack a view: the windows, and the layers' norms."""
    arrays = {
        **{f"windows.{name}": column.astype("<f8") for name, column in seen.windows.items()},
        **{f"layers.{name}": column.astype("<f8") for name, column in seen.layers.items()},
        # From wide to narrow, so that each array starts where its type may.
        "codes": seen.codes.astype("<i2"),
        "ratios": seen.ratios.astype("<i2"),
        "nonfinite": seen.nonfinite,
    }
    return _pack(arrays, start=start, end=end, sampled=sampled)


def weights(
    places: Mapping[str, Floats], norms: Codes, updates: Codes, beginning: Codes, start: float, end: float
) -> bytes:
    """Pack what is known of the weights."""
    arrays = {
        **{f"layers.{name}": column.astype("<f8") for name, column in places.items()},
        "norms": norms.astype("<i2"),
        "updates": updates.astype("<i2"),
        "beginning": beginning.astype("<i2"),
    }
    return _pack(arrays, start=start, end=end)


def _pack(arrays: Mapping[str, npt.NDArray[Any]], **told: Any) -> bytes:
    """Return the length of the header, the header as JSON padded to eight bytes, and the arrays in its order."""
    listed = [{"name": name, "type": array.dtype.str[1:], "shape": array.shape} for name, array in arrays.items()]
    text = json.dumps({**told, "codes_per_doubling": CODES, "arrays": listed}).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())
