"""From readings and weights to suspects, the strongest evidence first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import nn

from lightning_gradguard.attribution.displacement import displaced, explained
from lightning_gradguard.attribution.gains import excessive, growing
from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.attribution.weights import WeightTraits, examine
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.records import BATCH, LOSS, GradientStatistics, Suspect
from lightning_gradguard.records.verdict import Part
from lightning_gradguard.snapshots.snapshot import Snapshot

EXPLODES = 1e3
"""Growth of the signal in one function that no function between layers has in health."""


def blame(
    module: nn.Module,
    *,
    readings: Sequence[LayerReading] = (),
    snapshot: Snapshot | None = None,
    statistics: GradientStatistics | None = None,
    older: Snapshot | None = None,
    updates: int = 0,
    changes_only: bool = False,
    fresh: bool = True,
    averaged: bool = False,
) -> tuple[Suspect, ...]:
    """Name the layers at fault, worst first; nobody if nobody stands out.

    The evidence, strongest first: parameters that are not finite; parameters displaced since the snapshot while other
    layers' are not; a layer that turns a finite signal, or gradient, into one that is not; gains and weights too large
    against the other layers' and in themselves. Gradients are no evidence of size: in a network with one bad layer all
    the *others'* grow.

    Args:
        module: The root module.
        readings: What a :class:`Probe` saw of this step, or of a replay of it.
        snapshot: A state known to be good.
        statistics: The gradients of the step; used to tell which became non-finite at the parameters.
        older: The snapshot before that; it tells how fast training itself moves each layer.
        updates: Number of updates since ``snapshot``; 0 if unknown.
        changes_only: Hear only what has befallen a layer since the snapshot: what it is like a sound run may have made
            it.
        fresh: Whether the weights are those of an initialisation, so that their size can be held against them; those of
            a trained network are rightly far above what their fan calls for.
        averaged: Whether the gradients of the step are those of several processes: where they are not finite, another
            one's may have been so when they came to the layer.
    """
    traits = examine(module, snapshot)
    by_layer = {reading.layer: reading for reading in readings}
    found = _broken(traits) + displaced(traits, explained(module, snapshot, older, updates, statistics))
    if not changes_only and all(t.finite for t in traits):  # else every reading is polluted by it
        found += _origins(readings, None if averaged else statistics) or _between(readings, statistics)
        found += excessive(traits, by_layer, snapshot is not None and snapshot.step > 0) if fresh else []
        found = found or _exploding(readings) or (growing(traits, readings) if fresh else []) or _batch(readings)
    order = {t.layer: (by_layer[t.layer].order if t.layer in by_layer else index) for index, t in enumerate(traits)}
    measured = {t.layer: t for t in traits}
    return tuple(_complete(s, measured.get(s.layer), by_layer.get(s.layer)) for s in _worst_first(found, order))


def _worst_first(found: Sequence[Suspect], order: dict[str, int]) -> list[Suspect]:
    """Return the strongest evidence against each layer, worst first; where it is alike, by the order of the layers."""
    worst: dict[str, Suspect] = {}
    for suspect in sorted(found, key=lambda s: (-s.score, order.get(s.layer, 0))):
        worst.setdefault(suspect.layer, suspect)
    return list(worst.values())


def _complete(suspect: Suspect, traits: WeightTraits | None, reading: LayerReading | None) -> Suspect:
    return Suspect(
        layer=suspect.layer,
        score=suspect.score,
        reason=suspect.reason,
        forward_gain=None if reading is None else reading.forward_gain,
        backward_gain=None if reading is None else reading.backward_gain,
        weight_ratio=None if traits is None or not traits.finite else traits.excess,
        broken=suspect.broken,
        part=suspect.part,
        kind="" if reading is None else reading.type,
    )


def _broken(traits: Sequence[WeightTraits]) -> list[Suspect]:
    return [Suspect(t.layer, math.inf, "its parameters are not finite", broken=True) for t in traits if not t.finite]


def _origins(readings: Sequence[LayerReading], statistics: GradientStatistics | None) -> list[Suspect]:
    """Accuse layers in which something finite becomes non-finite, unless what came in was absurdly large already."""
    spoilt = set[str]()
    if statistics is not None:
        pairs = zip(statistics.names, statistics.norms.tolist(), strict=True)
        spoilt = {layer_of(name) for name, norm in pairs if not math.isfinite(norm)}
    last = max((r.order for r in readings if r.kind != "function"), default=-1)
    found = []
    for r in readings:
        if r.input_finite and not r.output_finite:
            part: Part = "layer" if r.kind != "function" else "loss" if r.order > last else "activation"
            found += _overflow(r, r.rms_in, "its output is not finite though its input is", part)
        elif r.grad_out_finite and (r.grad_in_finite is False or r.layer in spoilt):
            found += _overflow(r, r.grad_out, "its gradients are not finite though the gradient that reached it is")
    return found


def _exploding(readings: Sequence[LayerReading]) -> list[Suspect]:
    """Accuse the functions that blow the signal up a thousandfold each, and more than any layer, until it overflows."""
    if all(r.output_finite and r.grad_out_finite is not False for r in readings):
        return []
    layers = [r for r in readings if r.kind != "function"]
    largest = max((r.growth for r in layers if r.growth is not None and r.output_finite), default=0.0)
    # What is behind the first overflow was given inf, and nobody knows what it does to finite numbers.
    end = min((r.order for r in readings if not r.output_finite), default=math.inf)
    last = max((r.order for r in layers), default=-1)
    found = [
        Suspect(r.layer, math.log(min(r.growth, r.ceiling)), f"it blows the signal up {r.growth:.2g} fold", part=part)
        for r in readings
        if r.kind == "function" and r.order <= end and r.growth is not None and r.growth > max(EXPLODES, largest)
        for part in ("loss" if r.order > last else "activation",)
    ]
    first = max((s.score for s in found), default=0.0)
    return [dataclasses.replace(s, score=first) for s in found]  # Each was given what those before it have made.


def _between(readings: Sequence[LayerReading], statistics: GradientStatistics | None) -> list[Suspect]:
    """Accuse what makes the loss of an output that is finite, if the gradient that comes back to that is not."""
    last = max((r for r in readings if r.grad_out_finite is not None), key=lambda r: r.order, default=None)
    # A GradScaler's own scale makes such gradients, too.
    if last is None or last.grad_out_finite or (statistics is not None and statistics.scaled):
        return []
    if not all(r.rms_out is None or r.rms_out < math.sqrt(last.ceiling) for r in readings):
        return []  # Any loss would overflow by such an output, and a NaN makes another.
    reason = "the outputs of all modules are finite, and the gradient that comes back to the last of them is not"
    return [Suspect(LOSS, 0.5 * math.log(last.ceiling), reason, part="loss")]


def _overflow(reading: LayerReading, came_in: float | None, reason: str, part: Part = "layer") -> list[Suspect]:
    """The gain was at least ``ceiling / came_in``; half the dtype's range (in log) must be its own doing."""
    lowest = math.log(reading.ceiling) - math.log(max(came_in or 1.0, 1e-3))
    return [Suspect(reading.layer, lowest, reason, part=part)] if lowest >= 0.5 * math.log(reading.ceiling) else []


def _batch(readings: Sequence[LayerReading]) -> list[Suspect]:
    """Accuse the data if the first layer to see it got something that is not finite, or absurdly large."""
    first = min((r for r in readings if r.kind != "function"), key=lambda r: r.order, default=None)
    if first is None or first.rms_in is None:
        return []
    if not first.input_finite:
        return [Suspect(BATCH, math.inf, "the input of the first layer is not finite")]
    if first.rms_in > 1e4:
        return [
            Suspect(BATCH, math.log(first.rms_in), f"the input of the first layer has an RMS of {first.rms_in:.3g}")
        ]
    return []
