"""From the evidence to the cause: what an alarm means is said here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.records import Suspect, Verdict

FEW_LAYERS = 2
"""Layers that are at fault by themselves; where more stand out an update, or the whole initialisation, did it."""


class Cause(str, Enum):
    """What is at fault."""

    BATCH = "batch"
    """The data of this step."""
    LAYER = "layer"
    """One or two layers: badly initialised, or damaged since the last snapshot."""
    START = "start"
    """The initialisation as a whole, or the scale of the inputs or targets that it meets."""
    RATE = "learning rate"
    """Updates that are too large."""
    OPTIMIZER = "optimizer"
    """The optimizer's state."""
    SETTINGS = "optimizer settings"
    """A number that the optimizer was given, with which an update is not what its formula promises."""
    ACTIVATION = "activation"
    """A function inside the network that turns finite numbers into inf or NaN."""
    LOSS = "loss"
    """The loss function, or code between the model's output and it."""
    STALE = "stale gradients"
    """The training loop: gradients that were stepped by are not cleared, and the next ones are added to them."""
    MACHINE = "machine"
    """The machine of a process: computed again on the spot the step was another."""
    REGIME = "new regime"
    """Data, loss or task have changed for good."""
    UNKNOWN = "unknown"
    """None of these could be told."""


_ABOUT: dict[str, Callable[[Suspect], bool]] = {
    Cause.BATCH: lambda one: one.is_batch,
    Cause.LAYER: lambda one: one.is_layer,
    Cause.ACTIVATION: lambda one: one.part == "activation",
    Cause.LOSS: lambda one: one.part == "loss",
}


def in_order(suspects: Sequence[Suspect], cause: str) -> tuple[Suspect, ...]:
    """Return suspects with those first that a cause is about: what is named as the cause is named as the culprit."""
    about = _ABOUT.get(cause)
    return tuple(suspects) if about is None else tuple(sorted(suspects, key=lambda one: not about(one)))


def cause_of(
    verdict: Verdict, suspects: Sequence[Suspect], *, start: bool, large: bool, signal: Signal | None = None
) -> Cause:
    """Return the cause that the evidence of an alarm speaks for.

    Args:
        verdict: The alarm.
        suspects: Suspects, worst first.
        start: Whether the run is fresh and has learned nothing yet.
        large: Whether updates have replaced weights.
        signal: What becomes of the signal in a fresh network, where it was measured.
    """
    if any(suspect.is_batch for suspect in suspects):
        return Cause.BATCH
    layers = [suspect for suspect in suspects if suspect.is_layer]
    functions = {suspect.part for suspect in suspects} - {"layer"}
    if verdict.of_optimizer:
        return Cause.OPTIMIZER
    if layers and large and not start and not any(suspect.broken for suspect in layers):
        return Cause.RATE  # Updates of that size move layers about.
    if layers and not any(suspect.broken for suspect in layers):
        if len(layers) <= FEW_LAYERS:
            return Cause.LAYER
        if start:
            return Cause.START
    if layers and len(layers) <= FEW_LAYERS:
        return Cause.LAYER
    if functions and not large:
        return Cause.ACTIVATION if "activation" in functions else Cause.LOSS
    if start and signal is not None and not signal.sound:
        return Cause.START
    if verdict.diverges or (large and verdict.of_one_step):
        return Cause.RATE
    if verdict.of_a_start:
        return Cause.START
    return Cause.UNKNOWN
