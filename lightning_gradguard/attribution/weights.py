"""The weights of each layer as witnesses: finite or not, against their history, against what their fan calls for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_gradguard.attribution.magnitude import joined, kept, pieces, rms, square, to_host
from lightning_gradguard.layers.fan import expected_rms, fans
from lightning_gradguard.layers.names import Kind, clean, kind_of, layers, parameters_of
from lightning_gradguard.snapshots.snapshot import Snapshot
from lightning_gradguard.statistics.sharding import comparable, gathered, sharded, whole

_OUTLANDISH = 5.0
LEAST = 8
"""Elements from which the magnitude of a tensor, or how far it has moved, means something."""


@dataclass(slots=True)
class WeightTraits:
    """What the weights of one layer say.

    Args:
        layer: Qualified module name.
        kind: Kind of layer.
        trainable: Whether any of its parameters is trained.
        finite: Whether all of its parameters are finite.
        excess: Largest ``RMS(weight) / expected_rms``, None where nothing is expected.
        constant: ``|mean| * fan_in`` of a weight matrix that is all but constant, None where none is.
        narrowing: Log of the gain that a layer with fewer outputs than inputs may have by design.
        bias: RMS of the bias, 0.0 where there is none.
        displacement: ``||W - W_snapshot|| / ||W_snapshot||``, None without a snapshot of this layer.
    """

    layer: str
    kind: Kind
    trainable: bool = False
    finite: bool = True
    excess: float | None = None
    constant: float | None = None
    narrowing: float = 0.0
    bias: float = 0.0
    displacement: float | None = None
    _moved: float = field(default=0.0, repr=False)
    _size: float = field(default=0.0, repr=False)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One parameter: RMS and mean now, RMS of the change and of the earlier value."""

    traits: WeightTraits
    owner: nn.Module
    name: str
    parameter: Tensor
    values: list[Tensor]


def examine(module: nn.Module, snapshot: Snapshot | None = None) -> list[WeightTraits]:
    """Measure every layer's weights, with one transfer to the host."""
    earlier = {} if snapshot is None else {clean(name): value for name, value in snapshot.parameters.items()}
    found: list[WeightTraits] = []
    measured: list[_Measured] = []
    for layer, owner in layers(module).items():
        traits = WeightTraits(layer, kind_of(owner))
        found.append(traits)
        for name, parameter in parameters_of(owner).items():
            if (
                parameter.numel()
                and not parameter.is_meta
                and (parameter.is_floating_point() or parameter.is_complex())
            ):
                before = earlier.get(f"{layer}.{name}" if layer else name)
                measured.append(_Measured(traits, owner, name, parameter, _measure(parameter.detach(), before)))
    numbers = iter(to_host([value for m in measured for value in m.values]))
    for one in measured:
        _note(one, [next(numbers) for _ in one.values])
    for traits in found:
        if traits._size > 0.0:
            # A change too large to subtract comes out as NaN, which must not read as none at all.
            moved = traits._moved if math.isfinite(traits._moved) else math.inf
            traits.displacement = math.sqrt(moved / traits._size)
    return found


def _measure(parameter: Tensor, before: Tensor | None) -> list[Tensor]:
    """Return 0-d tensors: RMS, mean over RMS, and against an earlier value, if any, RMS of the change and of it."""
    # Every rank examines at the same time, and must see the same.
    full = whole(parameter)
    size = rms(full)
    real = torch.view_as_real(full) if full.is_complex() else full
    unit = size.clamp_min(torch.finfo(torch.float32).tiny)
    values = [size, kept((piece.float() / unit).sum() for piece in pieces(real)).sum() / real.numel()]
    known = type(parameter) in (Tensor, nn.Parameter) or sharded(parameter)
    if before is not None and known and comparable(before, parameter):
        earlier = gathered(before, parameter)
        values += [_rms_of_change(full, earlier), rms(earlier).to(full.device)]
    return values


def _rms_of_change(parameter: Tensor, before: Tensor) -> Tensor:
    # The earlier values are in host memory, and the device may have no room for all of them.
    both, count = zip(pieces(parameter), pieces(before), strict=True), parameter.numel()
    return joined(rms(now - then.to(now.device)) * (now.numel() / count) ** 0.5 for now, then in both)


def _note(one: _Measured, numbers: list[float]) -> None:
    traits, parameter = one.traits, one.parameter
    size, mean = numbers[0], numbers[1]
    expected = expected_rms(one.owner, one.name)
    traits.trainable |= parameter.requires_grad
    traits.finite &= math.isfinite(size)
    if one.name == "bias":
        traits.bias = size
    if expected is not None and math.isfinite(size):
        traits.excess = max(traits.excess or 0.0, size / expected)
    terms = fans(one.owner, one.name)
    if terms is not None:
        # He's fan-out mode gives a forward gain of sqrt(2 * in / out).
        traits.narrowing = max(traits.narrowing, 0.5 * math.log(max(1.0, terms[0] / terms[1])))
    # A draw of n independent values has |mean| / RMS of about 1 / sqrt(n). A subclass may compute with its weights in
    # its own way (weight-standardised convolutions start at ones), and then says nothing.
    stock = type(one.owner).__module__.startswith("torch.nn.")
    if stock and terms is not None and parameter.numel() >= 16 and abs(mean) > 0.995:
        traits.constant = max(traits.constant or 0.0, size * terms[0])
    # A learned scalar near zero (a temperature, a log-variance) moves by many times its size in health.
    if len(numbers) == 4 and (parameter.numel() >= LEAST or not math.isfinite(size)):
        traits._moved += parameter.numel() * square(numbers[2])
        traits._size += parameter.numel() * square(_counted(parameter, numbers[3], size, expected))


def _counted(parameter: Tensor, before: float, now: float, expected: float | None) -> float:
    """Return the RMS that a change is measured against: the earlier one, but no less than a weight of its kind has."""
    # A weight that grows from near zero (a zero-initialised branch) moves by many times its size in health.
    share = 0.5 if now > 2.0 * before else 0.1
    return max(before, 0.1 if parameter.ndim <= 1 else share * expected if expected is not None else 0.01)


@torch.no_grad()
def travelled(module: nn.Module, layer: str, older: Snapshot, newer: Snapshot) -> float:
    """Return a layer's displacement from one snapshot to the next, measured as :func:`examine` does."""
    owner, moved, size = layers(module)[layer], 0.0, 0.0
    for name, parameter in parameters_of(owner).items():
        full = f"{layer}.{name}" if layer else name
        before, now = older.parameters.get(full), newer.parameters.get(full)
        if before is None or now is None or before.shape != now.shape or not parameter.numel():
            continue
        before, now = gathered(before, parameter), gathered(now, parameter)
        change, was, is_now = to_host([_rms_of_change(now, before), rms(before), rms(now)])
        moved += now.numel() * square(change)
        size += now.numel() * square(_counted(now, was, is_now, expected_rms(owner, name)))
    return math.sqrt(moved / size) if size > 0.0 else 0.0


def outlandish(module: nn.Module) -> bool:
    """Return whether a matrix or kernel is of a size that no initialisation gives it, as can be told without a pass."""
    return any(
        t.kind in ("linear", "conv") and max(t.excess or 0.0, t.constant or 0.0) > _OUTLANDISH for t in examine(module)
    )
