"""A window as plain scalars that read well in any logger."""

from __future__ import annotations

import math

from lightning_gradguard.diagnostics import tags
from lightning_gradguard.records import Window

CEILING = 38.5
"""What a non-finite norm is drawn as: log10 of where float32 overflows, above every finite float32 norm."""

LOG_FLOOR = -12.0
"""What a norm of zero is drawn as; log10 would be -inf, which TensorBoard cannot draw."""


def log10_norm(norm: float) -> float:
    """Return log10 of a norm, kept drawable: NaN and inf become :data:`CEILING`, zero becomes :data:`LOG_FLOOR`.

    TensorBoard drops NaN from its charts, so the worst step would be the one that cannot be seen.

    >>> log10_norm(100.0), log10_norm(float("nan")), log10_norm(0.0)
    (2.0, 38.5, -12.0)
    """
    if not math.isfinite(norm):
        return CEILING
    return min(max(math.log10(norm), LOG_FLOOR), CEILING) if norm > 0 else LOG_FLOOR


def scalars(window: Window, optimizer: int | None = None) -> dict[str, float]:
    """Return the scalars of one window by tag.

    Witnesses are drawn as they are, and only where they have seen a finite number.

    The limit and the band are absent while there is no history, and so is the norm after clipping when the step was
    skipped (it would be zero, and drag a smoothed line to the floor). Where a GradScaler's own overflow left no norm,
    none is written. The band is written only as a whole: TensorBoard's margin chart refuses series whose steps differ.

    Args:
        window: What to show.
        optimizer: Its index where the run has several optimizers; it becomes a part of the tags.
    """
    values = {
        tags.NORM_PEAK: log10_norm(window.norm_peak),
        tags.NORM_BEFORE: log10_norm(window.norm_before),
        tags.COEFFICIENT: window.coefficient,
        tags.LR_FACTOR: window.lr_factor,
        tags.INCIDENTS: float(window.incidents),
        tags.CLIPPED: float(window.clipped),
        tags.SKIPPED: float(window.skipped),
    }
    if window.norm_after != 0.0 or window.norm_before == 0.0:
        values[tags.NORM_AFTER] = log10_norm(window.norm_after)
    if window.overflows and window.norm_before == 0.0:
        del values[tags.NORM_BEFORE], values[tags.NORM_AFTER]
    if window.overflows and window.norm_peak == 0.0:
        del values[tags.NORM_PEAK]
    if math.isfinite(window.limit):
        values[tags.LIMIT] = log10_norm(window.limit)
    values |= {told.witness: told.value for told in window.witnessed if math.isfinite(told.value)}
    result = {tags.tag(name, optimizer): value for name, value in values.items()}
    if math.isfinite(window.limit) and math.isfinite(window.typical) and tags.NORM_PEAK in values:
        norms = (window.norm_peak, window.typical, window.limit)
        result.update({name: log10_norm(norm) for name, norm in zip(tags.band(optimizer), norms, strict=True)})
    return result
