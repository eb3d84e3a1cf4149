"""What the guard writes into an event file, as this side reads it.

A tag is ``gradguard/<kind>``, in a run with several optimizers ``gradguard/optimizer_<i>/<kind>``. The event's step is
a counter ("tick") that never goes back: the fast loader deletes later points when a step falls, so a rollback would
lose the incident that caused it. The optimizer step travels in the payload. Where the list of layers changes in the
middle of a run, the new list gets a tag of its own: ``layers_2``, ``layers_3`` and so on.

========== =================== ================================================================================
kind       plugin name         tensor
========== =================== ================================================================================
layers     gradguard_layers    half, (2, layers): log2 of the peak norm (-60 for zero), count of non-finite steps
windows    gradguard_layers    double, (23,): :data:`COLUMNS`; older versions wrote the first nine, twelve or 19
weights    gradguard_layers    half, (2, layers): log2 of the weights' norm, log2 of an update's norm over it
incidents  gradguard_incidents string: JSON of an event and its incident
========== =================== ================================================================================
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LAYERS_PLUGIN = "gradguard_layers"
INCIDENTS_PLUGIN = "gradguard_incidents"
VERSION = 1
ZERO = -60.0
"""The log2 that stands for a gradient of exactly zero."""

WITNESSES = ("update_ratio", "second_moment", "attention_logit", "router_load")
"""What witnesses have seen, one number a window."""

COLUMNS = (
    "step",
    "first_step",
    "norm_peak",
    "norm_before",
    "norm_after",
    "typical",
    "limit",
    "coefficient",
    "lr_factor",
    "clipped",
    "skipped",
    "overflows",
    "peak_step",
    "loss_low",
    "loss_high",
    "loss_mean",
    "rate",
    "rate_good",
    "rate_bad",
    *WITNESSES,
    "cooled",
)
"""What a window holds; raw linear units, may be inf or NaN.

``clipped``, ``skipped`` and ``overflows`` are counts since the run began.
"""

FARTHEST_STEP = 2.0**53
"""No step is as far as that: beyond, a double does not tell it from the next."""
FIRST_COLUMNS = 9
"""Count of columns in the first version; later ones append."""

_TAG = re.compile(r"^gradguard/(?:optimizer_(\d+)/)?(layers|windows|weights|incidents)(?:_(\d+))?$")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of ours, taken apart."""

    name: str
    optimizer: int
    kind: str
    part: int = 1


def parse_tag(tag: str) -> Tag | None:
    """Take a tag apart, or return None if it is not one of ours.

    >>> parse_tag("gradguard/optimizer_1/layers")
    Tag(name='gradguard/optimizer_1/layers', optimizer=1, kind='layers', part=1)
    >>> parse_tag("loss") is None
    True
    """
    match = _TAG.match(tag)
    return Tag(tag, int(match[1] or 0), match[2], int(match[3] or 1)) if match else None


def parse_window(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Return a window's numbers, shape ``(len(COLUMNS),)``, NaN where an older version wrote none.

    None if it is no window.

    >>> parse_window(np.arange(9.0)).tolist()[7:10]
    [7.0, 8.0, nan]
    """
    if numbers.dtype.kind not in "fiu" or numbers.ndim != 1 or len(numbers) < FIRST_COLUMNS:
        return None
    if not (np.abs(numbers[:2]) < FARTHEST_STEP).all():
        return None
    row = np.full(len(COLUMNS), np.nan)
    row[: len(numbers)] = numbers[: len(COLUMNS)]
    return row


def parse_layers(content: bytes) -> tuple[tuple[str, ...], int]:
    """Read the layer names and the version from a tag's metadata; anything unreadable is no names, version 0."""
    try:
        read = json.loads(content)
        return tuple(str(name) for name in read["layers"]), int(read["version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return (), 0
