"""What becomes of a batch on its way through the network, from the readings of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.layers.names import SCALING

WILD = 10.0
"""RMS, up or down, of inputs and outputs that an initialisation is not made for: standardised ones have 1."""
ALIKE = 0.01
"""Deviation of a batch's outputs over their RMS below which the signal dies on its way."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What becomes of a batch on its way through the network.

    Args:
        source: RMS of the first input.
        growth: Largest RMS of a layer's output over ``source``, or over 1 if that is larger; what a normalisation takes
            in does not count, nor does a constant that a layer adds to all samples.
        variation: :attr:`LayerReading.variation` of the last layer, or the least :attr:`LayerReading.difference` if
            that is less: units that are all alike are one unit; None where both are unknown, or where the samples are
            alike to the first layer already.
        answers: :attr:`LayerReading.answers` of the last layer that has them; None where none has.
    """

    source: float
    growth: float
    variation: float | None
    answers: float | None = None

    @property
    def sound(self) -> bool:
        """Whether it is as an initialisation should have it: of the order of 1, and different from sample to sample."""
        return (
            1.0 / WILD <= self.source <= WILD
            and self.growth <= WILD
            and (self.variation is None or self.variation >= ALIKE)
        )


def signal(readings: tuple[LayerReading, ...]) -> Signal:
    """Return what became of the batch that the readings are of."""
    readings = tuple(r for r in readings if r.kind != "function")
    ahead = [r for r in readings if r.rms_out is not None and r.followed_by is None]
    # An embedding takes no signal in, and should give one of the order of 1.
    source = 1.0 if not readings or readings[0].largest_in is None else readings[0].largest_in
    largest = max(map(_signal_in, ahead), default=1.0)
    rows = [r for r in ahead if r.kind == "embedding"]
    if rows and not any(r.kind in SCALING for r in readings):
        # No layer scales what is made of them, and each is the other's weight: its gain is its squared length.
        largest = max(r.width * (r.rms_out or 0.0) ** 2 for r in rows)
    varied = [r.variation for r in readings if r.variation is not None]
    told = varied[-1:] if varied and varied[0] >= ALIKE else []
    told += [r.difference for r in readings if r.difference is not None]
    growth = largest / max(source, 1.0) if math.isfinite(source) else 1.0
    answers = [r.answers for r in readings if r.answers is not None]
    return Signal(source, growth, min(told, default=None), answers[-1] if answers else None)


def _signal_in(reading: LayerReading) -> float:
    """Return the RMS of an output; of one that is constant but for a hundredth, an offset, that of what varies."""
    size, varies = reading.rms_out or 0.0, reading.variation
    if not math.isfinite(size):
        return math.inf
    return size if varies is None or varies >= ALIKE else size * varies
