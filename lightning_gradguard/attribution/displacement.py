"""Layers that were rewritten since the last snapshot: they have moved farther than training can have carried them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from lightning_gradguard.attribution.outliers import typical
from lightning_gradguard.attribution.weights import WeightTraits, travelled
from lightning_gradguard.records import GradientStatistics, Suspect
from lightning_gradguard.snapshots.snapshot import Snapshot

# A layer rewritten with noise of its own size moves by sqrt(2), one filled with a constant by 1. Training moves an
# output layer half as far within ten to a hundred updates, and its peers far less: so it did in 23 of 179 healthy runs.
DISPLACED = 0.5
# Times what the layer moved before, in as many updates; and, where that is not known, the largest healthy update.
_FASTER, _FASTEST = 3.0, 0.1
_DISPLACED_APART, FAR_APART = math.log(5.0), math.log(20.0)
# Updates after a copy from which on a layer may be anywhere in health.
_OLD_COPY = 150
# The same where it is not known how fast training moves it.
_YOUNG_COPY = 20
_STILL = math.log(1e-2)


def explained(
    module: nn.Module,
    snapshot: Snapshot | None,
    older: Snapshot | None,
    updates: int,
    statistics: GradientStatistics | None,
) -> Callable[[str], float]:
    """Return how far training may have moved a layer since the snapshot: as far as before, farther at a higher rate."""
    if updates > _OLD_COPY:
        return lambda layer: math.inf
    if snapshot is None or older is None or snapshot.updates <= older.updates:
        return lambda layer: _FASTEST * updates if updates <= _YOUNG_COPY else math.inf
    share = updates / (snapshot.updates - older.updates)
    rate, before = None if statistics is None else statistics.rate, older.extra.get("rate", 0.0)
    share *= max(rate / before, 1.0) if rate is not None and before > 0.0 else 1.0
    return lambda layer: _FASTER * share * travelled(module, layer, older, snapshot)


def displaced(traits: Sequence[WeightTraits], explained: Callable[[str], float]) -> list[Suspect]:
    """Accuse layers rewritten since the snapshot; where all have moved alike there is no single culprit."""
    moved = {t.layer: t.displacement for t in traits if t.displacement is not None and t.trainable and t.finite}
    logs = {layer: max(math.log(value), _STILL) if value > 0.0 else _STILL for layer, value in moved.items()}
    found = []
    for layer, value in moved.items():
        centre, spread = typical([log for other, log in logs.items() if other != layer])
        apart = logs[layer] - (centre if len(logs) > 1 else math.log(0.1))
        far_apart = apart >= max(_DISPLACED_APART, min(4.0 * spread, FAR_APART))
        if value >= DISPLACED and far_apart and value >= explained(layer):
            others = f"those of other layers by {math.exp(centre):.2g} x theirs"
            reason = f"since the snapshot its weights changed by {value:.3g} x their norm, {others}"
            found.append(Suspect(layer, apart, reason))
    return found
