"""What the guard writes into an event file, as this side reads it.

A tag of optimizer 0 is ``gradguard/<kind>``, of a further one ``gradguard/optimizer_<i>/<kind>``. The event's step is a
counter ("tick") that never goes back: the fast loader deletes later points when a step falls, so a rollback would lose
the incident that caused it. The optimizer step travels in the payload.

========== =================== ================================================================================
kind       plugin name         tensor
========== =================== ================================================================================
layers     gradguard_layers    half, (2, layers): log2 of the peak norm (-60 for zero), count of non-finite steps
windows    gradguard_layers    double, (9,): :data:`COLUMNS`
incidents  gradguard_incidents string: JSON of an event and its incident
========== =================== ================================================================================
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

LAYERS_PLUGIN = "gradguard_layers"
INCIDENTS_PLUGIN = "gradguard_incidents"
VERSION = 1
ZERO = -60.0
"""The log2 that stands for a gradient of exactly zero."""

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
)
"""What a window holds; raw linear units, may be inf or NaN."""

_TAG = re.compile(r"^gradguard/(?:optimizer_(\d+)/)?(layers|windows|incidents)$")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of ours, taken apart."""

    optimizer: int
    kind: str


def parse_tag(tag: str) -> Tag | None:
    """Take a tag apart, or return None if it is not one of ours.

    >>> parse_tag("gradguard/optimizer_1/layers")
    Tag(optimizer=1, kind='layers')
    >>> parse_tag("loss") is None
    True
    """
    match = _TAG.match(tag)
    return Tag(int(match[1] or 0), match[2]) if match else None


def parse_layers(content: bytes) -> tuple[tuple[str, ...], int]:
    """Read the layer names and the version from a tag's metadata; anything unreadable is no names, version 0."""
    try:
        read = json.loads(content)
        return tuple(str(name) for name in read["layers"]), int(read["version"])
    except (ValueError, KeyError, TypeError):
        return (), 0
