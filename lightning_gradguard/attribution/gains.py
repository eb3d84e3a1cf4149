"""Layers whose gains and weights are too large, against those of the other layers and in themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_gradguard.attribution.displacement import DISPLACED
from lightning_gradguard.attribution.magnitude import square
from lightning_gradguard.attribution.outliers import stands_out
from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.attribution.weights import WeightTraits
from lightning_gradguard.records import Suspect

# Undisturbed since a run that went well: what looks large there was large in health too.
_TRUSTED = math.log(3.0)
# The normalisation that follows cancels the scale, so more of it is asked for.
_CANCELLED = math.log(2.0)
# Gains swing with the data (positive inputs line up with positive weights), more than the weights themselves do.
_SWING = math.log(1.5)
# An average, the one constant kernel in healthy use, sums its inputs one fold.
_CONSTANT_GAIN = 1.5
# Least value of a second witness: above He's sqrt(2), and for gains above what the data adds to it.
_LARGE, _AMPLIFIES = math.log(1.5), math.log(2.0)
_GROWTH = math.log(1e3)


@dataclass(frozen=True, slots=True)
class _Witness:
    """One kind of evidence about one layer: the log of a ratio that is about 1 in health.

    ``allowance`` is for this witness alone, ``width`` is part of the value that a narrowing layer explains. One that is
    not heard serves as a peer of others only: a gain that the next layer, a normalisation, cancels.
    """

    kind: str
    value: float
    allowance: float
    heard: bool = True
    width: float = 0.0


def excessive(traits: Sequence[WeightTraits], readings: dict[str, LayerReading], history: bool) -> list[Suspect]:
    """Accuse layers whose gains and weights are too large; two witnesses must agree where two can speak.

    One of the two must be the weights where these are known: a layer may standardise them, or scale its output, by
    design.
    """
    witnesses = {t.layer: _witnesses(t, readings.get(t.layer)) for t in traits if t.trainable}
    groups = {t.layer: t.kind if t.kind in ("norm", "embedding") else "layer" for t in traits}
    found = []
    for t in traits:
        if t.layer not in witnesses:
            continue
        doubt = _TRUSTED if history and t.displacement is not None and t.displacement < DISPLACED else 0.0
        if t.constant is not None and t.constant >= _CONSTANT_GAIN * math.exp(doubt):
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
        both = found + backward  # either suffices: a matrix of a healthy size may explode through time
        return [max(both, key=lambda w: w.value - w.allowance)] if both else []
    if reading.forward_gain is not None and reading.rms_in:
        # A bias adds to the output whatever the input is.
        gain = math.sqrt(max(square(reading.forward_gain) - square(traits.bias / reading.rms_in), 0.0))
        found.append(_Witness("forward gain", _log(gain), _SWING, not normed, traits.narrowing))
    return found + backward


def _wording(witnesses: Sequence[_Witness]) -> str:
    texts = {"weights": "weights {:.3g} times what their fan calls for"}
    return ", ".join(texts.get(w.kind, w.kind + " {:.3g}").format(math.exp(w.value)) for w in witnesses)


def growing(traits: Sequence[WeightTraits], readings: Sequence[LayerReading]) -> list[Suspect]:
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


def _log(value: float) -> float:
    """Return the logarithm, bounded below; inf stays inf, and NaN counts as the worst."""
    return math.inf if math.isnan(value) else math.log(max(value, 1e-12))
