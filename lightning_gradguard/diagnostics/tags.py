"""All tag names that GradGuard writes, in one place.

TensorBoard sorts cards alphabetically inside the group before the first ``/``, so the numbers below are the reading
order, three cards a row: how large (peak, before, after), what was done (limit, coefficient, learning rate), how often
(incidents, clipped, skipped). All have one digit, or ``10_`` would come second.
"""

from __future__ import annotations

import json
from urllib.parse import quote

NORM_PEAK = "1_log10_norm_peak"
NORM_BEFORE = "2_log10_norm_before_clip"
NORM_AFTER = "3_log10_norm_after_clip"
LIMIT = "4_log10_limit"
COEFFICIENT = "5_clip_coefficient"
LR_FACTOR = "6_lr_factor"
INCIDENTS = "7_incidents"
CLIPPED = "8_steps_clipped"
SKIPPED = "9_steps_skipped"

SCALARS = (NORM_PEAK, NORM_BEFORE, NORM_AFTER, LIMIT, COEFFICIENT, LR_FACTOR, INCIDENTS, CLIPPED, SKIPPED)
"""The numbered scalars, in reading order."""

BAND_PEAK = "log10_norm_peak"
BAND_TYPICAL = "log10_typical"
BAND_LIMIT = "log10_limit"

LAYERS = "layers"
WINDOWS_TAG = "windows"
WEIGHTS = "weights"
HEATMAP = "heatmap"

GROUP = "gradguard"
BAND_GROUP = "gradguard_band"
HISTOGRAM_GROUP = "gradguard_log10_gradient"
INCIDENT_EVENTS = f"{GROUP}/incidents"
INCIDENT_TEXT = f"{GROUP}/incident_log"


def tag(name: str, optimizer: int | None = None, *, group: str = GROUP) -> str:
    """Return the full tag of ``name``; with an optimizer's index in it where a run has several.

    >>> tag(LR_FACTOR), tag(LR_FACTOR, 1)
    ('gradguard/6_lr_factor', 'gradguard/optimizer_1/6_lr_factor')
    """
    return f"{group}/{name}" if optimizer is None else f"{group}/optimizer_{optimizer}/{name}"


def band(optimizer: int | None = None) -> list[str]:
    """Return the three tags of the margin chart: value, lower edge, upper edge."""
    return [tag(name, optimizer, group=BAND_GROUP) for name in (BAND_PEAK, BAND_TYPICAL, BAND_LIMIT)]


def pinned_link(base_url: str = "http://localhost:6006", *, optimizers: int = 1) -> str:
    """Return a link that opens TensorBoard with the first six scalars of each optimizer pinned, unsmoothed."""
    indices: list[int | None] = [None] if optimizers == 1 else list(range(optimizers))
    cards = [{"plugin": "scalars", "tag": tag(name, index)} for index in indices for name in SCALARS[:6]]
    pinned = quote(json.dumps(cards, separators=(",", ":")))
    return f"{base_url.rstrip('/')}/?pinnedCards={pinned}&smoothing=0#timeseries"
