"""From readings and weights to suspects, the strongest evidence first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_gradguard.attribution.outliers import stands_out, typical
from lightning_gradguard.attribution.probe import LayerReading
from lightning_gradguard.attribution.weights import WeightTraits, examine, travelled
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.records import GradientStatistics, Suspect
from lightning_gradguard.snapshots.snapshot import Snapshot

# A layer rewritten with noise of its own size moves by sqrt(2), one filled with a constant by 1. Training moves an output layer
# half as far within ten to a hundred updates, and its peers far less: so it did in 23 of 179 healthy runs.
_DISPLACED = 0.5
# Times what the layer moved before, in as many updates; and, where that is not known, the largest healthy update.
_FASTER, _FASTEST = 3.0, 0.1
_DISPLACED_APART, _DISPLACED_FAR = math.log(5.0), math.log(20.0)
# Updates after which a layer may honestly be anywhere.
OLD = 150
# The same where it is not known how fast training moves it.
FEW = 20
_STILL = math.log(1e-2)
# Undisturbed since a run that went well: what looks large there was large in health too.
_TRUSTED = math.log(3.0)
# The normalisation that follows cancels the scale, so more of it is asked for.
_CANCELLED = math.log(2.0)
# Gains swing with the data (positive inputs line up with positive weights), more than the weights themselves do.
_SWING = math.log(1.5)
# An average, the one constant kernel in honest use, sums its inputs one fold.
_CONSTANT = 1.5
# What a second witness must say: above He's sqrt(2), and for gains above what the data adds to it.
_LARGE, _AMPLIFIES = math.log(1.5), math.log(2.0)
_GROWTH = math.log(1e3)


@dataclass(frozen=True, slots=True)
class _Witness:
    """One kind of evidence about one layer: the log of a ratio that is about 1 in health.

    ``allowance`` is for this witness alone, ``width`` is part of the value that a narrowing layer explains. One that is not
    heard serves as a peer of others only: a gain that the next layer, a normalisation, cancels.
    """

    kind: str
    value: float
    allowance: float
    heard: bool = True
    width: float = 0.0


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
) -> tuple[Suspect, ...]:
    """Name the layers at fault, worst first; nobody if nobody stands out.

    The evidence, strongest first: parameters that are not finite; parameters displaced since the snapshot while other layers'
    are not; a layer that turns a finite signal, or gradient, into one that is not; gains and weights too large against the other
    layers' and in themselves. Gradients are no evidence of size: in a network with one bad layer all the *others'* grow.

    Args:
        module: The root module.
        readings: What a :class:`Probe` saw of this step, or of a replay of it.
        snapshot: A state known to be good.
        statistics: The gradients of the step; used to tell which became non-finite at the parameters.
        older: The snapshot before that; it tells how fast training itself moves each layer.
        updates: Number of updates since ``snapshot``; 0 if unknown.
        changes_only: Hear only what has befallen a layer since the snapshot, not what it is like: a sound run may have made it so.
        fresh: Whether the weights are those of an initialisation, so that their size can be held against them; those of a trained
            network are rightly far above what their fan calls for.
    """
    traits = examine(module, snapshot)
    by_layer = {reading.layer: reading for reading in readings}
    found = _broken(traits) + _displaced(traits, _explained(module, snapshot, older, updates, statistics))
    if not changes_only and all(t.finite for t in traits):  # else every reading is polluted by it
        history = snapshot is not None and snapshot.step > 0
        found += _origins(readings, statistics)
        if fresh:
            found += _excessive(traits, by_layer, history)
            found += [] if found else _growing(traits, readings)
        found += [] if found else _batch(readings)
    order = {t.layer: (by_layer[t.layer].order if t.layer in by_layer else index) for index, t in enumerate(traits)}
    worst: dict[str, Suspect] = {}
    for suspect in sorted(found, key=lambda b: (-b.score, order.get(b.layer, 0))):
        worst.setdefault(suspect.layer, suspect)
    measured = {t.layer: t for t in traits}
    return tuple(
        _complete(suspect, measured.get(suspect.layer), by_layer.get(suspect.layer)) for suspect in worst.values()
    )


def _complete(suspect: Suspect, traits: WeightTraits | None, reading: LayerReading | None) -> Suspect:
    return Suspect(
        layer=suspect.layer,
        score=suspect.score,
        reason=suspect.reason,
        forward_gain=None if reading is None else reading.forward_gain,
        backward_gain=None if reading is None else reading.backward_gain,
        weight_ratio=None if traits is None else traits.excess,
        broken=suspect.broken,
    )


def _broken(traits: Sequence[WeightTraits]) -> list[Suspect]:
    return [Suspect(t.layer, math.inf, "its parameters are not finite", broken=True) for t in traits if not t.finite]


def _explained(
    module: nn.Module,
    snapshot: Snapshot | None,
    older: Snapshot | None,
    updates: int,
    statistics: GradientStatistics | None,
) -> Callable[[str], float]:
    """Return how far training itself may have moved a layer since the snapshot: as far as before, farther at a higher rate."""
    if updates > OLD:
        return lambda layer: math.inf
    if snapshot is None or older is None or snapshot.updates <= older.updates:
        return lambda layer: _FASTEST * updates if updates <= FEW else math.inf
    share = updates / (snapshot.updates - older.updates)
    rate, before = None if statistics is None else statistics.rate, older.extra.get("rate", 0.0)
    share *= max(rate / before, 1.0) if rate is not None and before > 0.0 else 1.0
    return lambda layer: _FASTER * share * travelled(module, layer, older, snapshot)


def _displaced(traits: Sequence[WeightTraits], explained: Callable[[str], float]) -> list[Suspect]:
    """Accuse layers rewritten since the snapshot; where all have moved alike there is no single culprit."""
    moved = {t.layer: t.displacement for t in traits if t.displacement is not None and t.trainable and t.finite}
    logs = {layer: max(math.log(value), _STILL) if value > 0.0 else _STILL for layer, value in moved.items()}
    found = []
    for layer, value in moved.items():
        centre, spread = typical([log for other, log in logs.items() if other != layer])
        apart = logs[layer] - (centre if len(logs) > 1 else math.log(0.1))
        far_apart = apart >= max(_DISPLACED_APART, min(4.0 * spread, _DISPLACED_FAR))
        if value >= _DISPLACED and far_apart and value >= explained(layer):
            reason = f"its weights moved by {value:.3g} of their norm since the snapshot, those of other layers by {math.exp(centre):.2g}"
            found.append(Suspect(layer, apart, reason))
    return found


def _origins(readings: Sequence[LayerReading], statistics: GradientStatistics | None) -> list[Suspect]:
    """Accuse layers in which something finite becomes non-finite, unless what came in was absurdly large already."""
    spoilt = set[str]()
    if statistics is not None:
        pairs = zip(statistics.names, statistics.norms.tolist(), strict=True)
        spoilt = {layer_of(name) for name, norm in pairs if not math.isfinite(norm)}
    found = []
    for r in readings:
        if r.input_finite and not r.output_finite:
            found += _overflow(r, r.rms_in, "its output is not finite though its input is")
        elif r.grad_out_finite and (r.grad_in_finite is False or r.layer in spoilt):
            found += _overflow(r, r.grad_out, "its gradients are not finite though the gradient that reached it is")
    return found


def _overflow(reading: LayerReading, came_in: float | None, reason: str) -> list[Suspect]:
    """The gain was at least ``ceiling / came_in``; half the dtype's range (in log) must be its own doing."""
    lowest = math.log(reading.ceiling) - math.log(max(came_in or 1.0, 1e-3))
    return [Suspect(reading.layer, lowest, reason)] if lowest >= 0.5 * math.log(reading.ceiling) else []


def _excessive(traits: Sequence[WeightTraits], readings: dict[str, LayerReading], history: bool) -> list[Suspect]:
    """Accuse layers whose gains and weights are too large; two witnesses must agree where two can speak.

    One of the two must be the weights where these are known: a layer may standardise them, or scale its output, by design.
    """
    witnesses = {t.layer: _witnesses(t, readings.get(t.layer)) for t in traits if t.trainable}
    groups = {t.layer: t.kind if t.kind in ("norm", "embedding") else "layer" for t in traits}
    found = []
    for t in traits:
        if t.layer not in witnesses:
            continue
        doubt = _TRUSTED if history and t.displacement is not None and t.displacement < _DISPLACED else 0.0
        if t.constant is not None and t.constant >= _CONSTANT * math.exp(doubt):
            reason = f"its weights are all but constant, so they sum their inputs {t.constant:.3g} fold"
            found.append(Suspect(t.layer, math.log(t.constant), reason))
        heard = [w for w in witnesses[t.layer] if w.heard]
        peers = [
            w for other, ws in witnesses.items() if other != t.layer and groups[other] == groups[t.layer] for w in ws
        ]
        strengths = [_strength(w, peers, doubt) for w in heard]
        agreeing = [
            w.kind for w in heard if w.value - w.width - doubt >= (_LARGE if w.kind == "weights" else _AMPLIFIES)
        ]
        silent = "weights" in {w.kind for w in heard} and "weights" not in agreeing
        if any(strengths) and len(agreeing) >= min(2, len(heard)) and not silent:
            found.append(Suspect(t.layer, max(strengths), _wording(heard)))
    return found


def _strength(witness: _Witness, peers: Sequence[_Witness], doubt: float) -> float:
    others = [peer.value - peer.width - witness.allowance for peer in peers if peer.kind == witness.kind]
    return stands_out(witness.value - witness.width - witness.allowance - doubt, others) or 0.0


def _witnesses(traits: WeightTraits, reading: LayerReading | None) -> list[_Witness]:
    """Choose the evidence that means something for this kind of layer.

    The output of a recurrent layer is bounded, a normalisation's gains are set by its input, an embedding has no input.
    """
    normed = reading is not None and reading.followed_by is not None
    found = []
    if traits.excess is not None:
        found.append(_Witness("weights", _log(traits.excess), _CANCELLED if normed else 0.0))
    if reading is None or traits.kind in ("norm", "embedding", "attention"):
        return found
    backward = []
    if reading.backward_gain is not None:
        backward = [_Witness("backward gain", _log(reading.backward_gain), _SWING, not normed, traits.narrowing)]
    if traits.kind == "recurrent":
        both = found + backward  # either suffices: a sane matrix may still explode through time
        return [max(both, key=lambda w: w.value - w.allowance)] if both else []
    if reading.forward_gain is not None and reading.rms_in:
        # A bias adds to the output whatever the input is.
        gain = math.sqrt(max(_square(reading.forward_gain) - _square(traits.bias / reading.rms_in), 0.0))
        found.append(_Witness("forward gain", _log(gain), _SWING, not normed, traits.narrowing))
    return found + backward


def _wording(witnesses: Sequence[_Witness]) -> str:
    texts = {"weights": "weights {:.3g} times what their fan calls for"}
    return ", ".join(texts.get(w.kind, w.kind + " {:.3g}").format(math.exp(w.value)) for w in witnesses)


def _growing(traits: Sequence[WeightTraits], readings: Sequence[LayerReading]) -> list[Suspect]:
    """Accuse every layer that amplifies, where none stands out but together they blow the signal up a thousandfold."""
    kinds = {t.layer: t for t in traits if t.trainable}
    plain = [
        r for r in readings if r.layer in kinds and r.kind in ("linear", "conv", "other") and r.followed_by is None
    ]
    ahead = _span(plain, lambda r: r.rms_out, lambda r: r.rms_in)
    back = _span(plain[::-1], lambda r: (r.grad_out or 0.0) * (r.backward_gain or 0.0), lambda r: r.grad_out)
    if max(ahead, back) < _GROWTH:
        return []
    gains = {r.layer: max(r.forward_gain or 0.0, r.backward_gain or 0.0) for r in plain}
    reason = "amplifies {:.3g} fold, as do others, and together they blow the signal up {:.2g} fold"
    return [
        Suspect(layer, _log(gain), reason.format(gain, math.exp(max(ahead, back))))
        for layer, gain in gains.items()
        if _log(gain) >= _AMPLIFIES and _log(kinds[layer].excess or math.inf) >= _LARGE
    ]


def _span(
    readings: Sequence[LayerReading],
    out: Callable[[LayerReading], float | None],
    into: Callable[[LayerReading], float | None],
) -> float:
    """Return the log of the largest output over the first input."""
    first = next((value for r in readings if (value := into(r))), None)
    outs = [value for r in readings if (value := out(r)) is not None]
    if first is None or not outs or not math.isfinite(first):
        return 0.0
    return _log(max(outs) / first)


def _batch(readings: Sequence[LayerReading]) -> list[Suspect]:
    """Accuse the data if the first layer to see it got something that is not finite, or absurdly large."""
    first = min(readings, key=lambda r: r.order, default=None)
    if first is None or first.rms_in is None:
        return []
    if not first.input_finite:
        return [Suspect("batch", math.inf, "the input of the first layer is not finite")]
    if first.rms_in > 1e4:
        return [
            Suspect("batch", math.log(first.rms_in), f"the input of the first layer has an RMS of {first.rms_in:.3g}")
        ]
    return []


def _log(value: float) -> float:
    """Return the logarithm, bounded below; inf stays inf, and NaN counts as the worst."""
    return math.inf if math.isnan(value) else math.log(max(value, 1e-12))


def _square(value: float) -> float:
    return value * value
