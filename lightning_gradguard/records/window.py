"""What is shown of the steps between two logs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lightning_gradguard.records.measured import FloatArray
from lightning_gradguard.records.witnessed import WITNESSES, Testimony


@dataclass(frozen=True, slots=True)
class Window:
    """The steps since the last window was logged, as the diagnostics need them.

    Args:
        step: The last optimizer step in the window.
        first_step: The first.
        optimizer: Index of the optimizer.
        tick: Count of windows so far; never goes back, not even on a rollback.
        norm_peak: Largest global norm before any remedy; inf or NaN if one was seen. The overflows that a GradScaler
            expects do not count: 0.0 if there was nothing else.
        norm_before: Global norm of the last step, before any remedy; 0.0 for such an overflow.
        norm_after: The same after clipping; 0.0 for a skipped step.
        typical: Centre of the healthy band, NaN while there is no history.
        limit: Limit of the detector, NaN while there is no history.
        coefficient: Smallest clip coefficient in the window, 1.0 when nothing was clipped.
        lr_factor: Factor on the learning rate now.
        clipped: Steps clipped so far.
        skipped: Steps skipped so far.
        incidents: Incidents so far.
        loss: Last loss, or None.
        layers: Layer names, in forward order where that is known.
        layer_peaks: Largest finite gradient norm of each layer in the window, shape ``(len(layers),)``.
        layer_nonfinite: Count of steps with a non-finite gradient, shape ``(len(layers),)``; expected overflows do not
            count.
        overflows: Steps so far that a GradScaler skipped by itself, as it is expected to now and then.
        peak_step: The step of ``norm_peak``; None in records of older versions.
        loss_low: Smallest finite loss in the window, NaN where none is known.
        loss_high: Largest finite loss.
        loss_mean: Mean of the finite losses.
        rate: The learning rate that the last update was made with, any back-off included; NaN where asking would cost.
        rate_good: The largest that the run is known to have learned with; 0.0 if none is, NaN in records of older
            versions.
        rate_bad: The smallest that is known to have lost the run; inf if none is.
        cooled: Share of a rate held down that is in use in its cool-down near the end of the run; 1 before.
        layer_weights: Norm of each layer's weights at one step of the window, NaN where unknown; empty in records of
            older versions.
        layer_updates: How far one update moved them: its norm over that of the weights.
        witnessed: What the witnesses have seen, one number each; empty in records of older versions.
    """

    step: int
    first_step: int
    optimizer: int
    tick: int
    norm_peak: float
    norm_before: float
    norm_after: float
    typical: float
    limit: float
    coefficient: float
    lr_factor: float
    clipped: int
    skipped: int
    incidents: int
    loss: float | None
    layers: tuple[str, ...]
    layer_peaks: FloatArray = field(repr=False)
    layer_nonfinite: FloatArray = field(repr=False)
    overflows: int = 0
    peak_step: int | None = None
    loss_low: float = math.nan
    loss_high: float = math.nan
    loss_mean: float = math.nan
    rate: float = math.nan
    rate_good: float = math.nan
    rate_bad: float = math.nan
    cooled: float = 1.0
    layer_weights: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    layer_updates: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    witnessed: tuple[Testimony, ...] = ()

    def number(self, name: str) -> float | None:
        """Return a field of one number, or what the witness of that name has seen; NaN where it has seen nothing."""
        if name in WITNESSES:
            return next((told.value for told in self.witnessed if told.witness == name), math.nan)
        value: float | None = getattr(self, name)
        return value
