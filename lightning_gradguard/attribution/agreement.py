"""Agreement between processes: each tells the others what it has found, so that all come to the same verdict."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection, Iterable
from typing import Literal

from torch import nn

from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.layers.names import layers as all_layers
from lightning_gradguard.records import BATCH, GradientStatistics, Suspect
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.collectives import Collectives, Own

Asked = Literal["batch", "changes", "all"]


def agreed(mine: Signal, collectives: Collectives) -> Signal:
    """Return what was measured of the signal, averaged over the processes, so that all come to the same verdict."""
    if collectives.size == 1:
        return mine
    told = [math.nan if value is None else value for value in dataclasses.astuple(mine)]
    source, growth, *varies = collectives.mean(told)
    return Signal(source, growth, *(None if math.isnan(value) else value for value in varies))


def suspects(
    module: nn.Module,
    collectives: Collectives,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    accused: Own[Suspect | None],
    *,
    snapshots: SnapshotStore,
    parameters: Collection[str],
    others: Collection[str] = (),
    accepted: int = 0,
    fresh: bool = False,
    sharded: bool = False,
    ask: Asked = "all",
    first: bool = False,
) -> tuple[Suspect, ...]:
    """Return whom the batch, the readings and the weights speak against, worst first; the same on all processes.

    Where nothing may be wrong at all, only ``"changes"`` since the snapshot count, or the ``"batch"``, at little cost.

    Args:
        module: The root module.
        collectives: The processes that must come to the same verdict.
        statistics: The gradients of the step.
        readings: What the probe has measured in this batch.
        accused: The evidence that this process has against its batch, or None.
        snapshots: States known to be good.
        parameters: Names of the optimizer's parameters.
        others: Those of other optimizers.
        accepted: Steps that were accepted so far.
        fresh: Whether the run is fresh from its initialisation and has learned nothing.
        sharded: Whether parameters are sharded over the processes.
        ask: What may be at fault.
        first: Whether the weights are those of the first step, which tell by themselves where they are fresh.
    """
    layers: tuple[Suspect, ...] = ()
    # Without a snapshot only measured gains tell a bad layer from one that is merely large: a first look comes first.
    if ask != "batch" and (readings or first or snapshots.latest is not None):
        only, several = ask == "changes", collectives.size > 1
        layers = _layers(module, statistics, readings, snapshots, accepted, only, fresh, sharded, several)
    mine = accused.and_then(lambda batch: ([batch] if batch else []) + list(layers))
    told = mine.told(collectives)
    merged = _merged(map(_seen_on, told, range(len(told))) if collectives.size > 1 else told)
    owners = _owners(module, parameters, others, broken=any(suspect.broken for suspect in merged))
    return tuple(s for s in sorted(merged, key=lambda s: (-s.score, s.layer)) if s.layer in owners or s.part != "layer")


def _seen_on(suspects: Iterable[Suspect], rank: int) -> list[Suspect]:
    """Return suspects with the process that saw them, where they are a batch: layers are the same on all."""
    return [dataclasses.replace(one, rank=rank) if one.is_batch else one for one in suspects]


def _merged(told: Iterable[Iterable[Suspect]]) -> Collection[Suspect]:
    """Return the strongest evidence of all processes against each suspect."""
    found: dict[str, Suspect] = {}
    for others in told:
        for suspect in others:
            known = found.get(suspect.layer)
            if known is None or suspect.score > known.score:
                found[suspect.layer] = suspect
    return found.values()


def _owners(module: nn.Module, parameters: Collection[str], others: Collection[str], *, broken: bool) -> set[str]:
    """Return the suspects that are an optimizer's business: the batch, and the layers that it trains.

    A layer that nobody trains (a frozen teacher, an average of the weights) can be ``broken`` too, and is everybody's.
    """
    mine = {layer_of(name) for name in parameters} | {BATCH}
    theirs = {layer_of(name) for name in others}
    frozen = {
        name for name, layer in all_layers(module).items() if not any(p.requires_grad for p in layer.parameters())
    }
    return mine | frozen | (set(all_layers(module)) - theirs) if broken else mine


def _layers(
    module: nn.Module,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    snapshots: SnapshotStore,
    accepted: int,
    changes: bool,
    fresh: bool,
    sharded: bool,
    several: bool,
) -> tuple[Suspect, ...]:
    """Return the layers that this process blames, none where there is no memory to examine them."""
    from lightning_gradguard.attribution.suspects import blame  # only now: most runs never blame anybody

    snapshot = snapshots.latest
    try:
        return blame(
            module,
            readings=readings,
            snapshot=snapshot,
            statistics=statistics,
            older=snapshots.older,
            updates=0 if snapshot is None else max(accepted - snapshot.updates, 0),
            changes_only=changes,
            fresh=fresh,
            averaged=several,
        )
    except Exception as error:
        # Where shards are gathered for it, the other processes would wait for this one.
        if sharded or not out_of_memory(error):
            raise
        warnings.warn(f"GradGuard: no memory to examine the layers, so none is blamed: {error}", RuntimeWarning, 2)
        return ()
