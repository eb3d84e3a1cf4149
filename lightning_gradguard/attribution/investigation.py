"""Suspicion and its answer: arm the probe for the next batch, then name the suspects of all processes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection
from typing import Any, Literal

from torch import nn

from lightning_gradguard.attribution.probe import LayerReading, Probe, Signal
from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.layers.names import layers as all_layers
from lightning_gradguard.records import GradientStatistics, Suspect
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.collectives import Collectives, Own

Asked = Literal["batch", "changes", "all"]


class Investigation:
    """Know for which optimizers layers are being measured, and turn the readings into suspects."""

    def __init__(self) -> None:
        self._probe = Probe()
        # Optimizers that the probe measures for; each takes the readings at its own next step.
        self._awaiting: set[int] = set()
        # Those whose batch at hand had been through the layers before they were to be measured.
        self._postponed: set[int] = set()
        self._rearm = ""

    @property
    def armed(self) -> str:
        """``"full"`` or ``"forward"`` while layers are measured or will be again, empty otherwise."""
        return self._probe.armed or self._rearm

    @property
    def outside(self) -> bool:
        """Whether the last readings were made outside a compiled graph."""
        return self._probe.outside

    def awaits(self, optimizer: int) -> bool:
        """Return whether the next step of an optimizer brings readings."""
        return optimizer in self._awaiting

    def postpone(self, optimizer: int) -> None:
        """Take an optimizer's readings one step later: what was armed just now has missed the batch at hand."""
        self._postponed.add(optimizer)

    def arm(self, optimizer: int, module: nn.Module, *, backward: bool) -> None:
        """Measure every layer during the next batch, for one optimizer."""
        self._awaiting.add(optimizer)
        self._probe.arm(module, backward=backward)

    def arm_again(self, module: nn.Module) -> None:
        """Arm the probe if it was armed when the state was saved, or at :meth:`rest`."""
        if self._rearm:
            self._probe.arm(module, backward=self._rearm == "full")
            self._rearm = ""

    def disarm(self) -> None:
        """Take the hooks off."""
        self._probe.disarm()

    def rest(self) -> None:
        """Take the hooks off until :meth:`arm_again`."""
        self._rearm = self.armed
        self._probe.disarm()

    def forget(self) -> None:
        """Forget what was asked for of another module."""
        self._rearm, self._awaiting = "", set()

    def readings(self, optimizer: int) -> tuple[LayerReading, ...]:
        """Return what the probe measured for an optimizer since its last step."""
        if optimizer not in self._awaiting:
            return ()
        if optimizer in self._postponed:
            self._postponed.discard(optimizer)
            return ()
        readings = self._probe.readings() if self._probe.armed else ()
        self._awaiting.discard(optimizer)
        if not self._awaiting:
            self._probe.disarm()
        return readings

    def state_dict(self) -> dict[str, Any]:
        """Return what is being measured, and for whom."""
        return {"armed": self.armed, "awaiting": sorted(self._awaiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; :meth:`arm_again` puts it into effect."""
        self._rearm = str(state["armed"])
        self._awaiting = {int(index) for index in state["awaiting"]}
        self._probe.disarm()


def agreed(mine: Signal, collectives: Collectives) -> Signal:
    """Return what became of the signal in the mean over the processes, which must come to the same verdict."""
    if collectives.size == 1:
        return mine
    unknown = math.nan if mine.variation is None else mine.variation
    source, growth, variation = collectives.mean([mine.source, mine.growth, unknown])
    return Signal(source, growth, None if math.isnan(variation) else variation)


def suspects(
    module: nn.Module,
    collectives: Collectives,
    statistics: GradientStatistics,
    readings: tuple[LayerReading, ...],
    accused: Own[Suspect | None],
    *,
    snapshots: SnapshotStore,
    parameters: Collection[str],
    accepted: int = 0,
    fresh: bool = False,
    sharded: bool = False,
    ask: Asked = "all",
) -> tuple[Suspect, ...]:
    """Return whom the batch, the readings and the weights speak against, worst first; the same on all processes.

    Where there may be nothing wrong at all, only ``"changes"`` since the snapshot count, or only the ``"batch"``, which costs next to
    nothing.

    Args:
        module: The root module.
        collectives: The processes that must come to the same verdict.
        statistics: The gradients of the step.
        readings: What the probe has measured in this batch.
        accused: The evidence that this process has against its batch, or None.
        snapshots: States known to be good.
        parameters: Names of the optimizer's parameters.
        accepted: Steps that were accepted so far.
        fresh: Whether the run is fresh from its initialisation and has learned nothing.
        sharded: Whether parameters are sharded over the processes.
        ask: What may be at fault.
    """
    from lightning_gradguard.attribution.suspects import blame  # only now: most runs never blame anybody

    # Without a snapshot only measured gains tell a bad layer from a loud one: a first look comes first.
    snapshot = snapshots.latest if ask != "batch" else None
    layers: tuple[Suspect, ...] = ()
    try:
        if ask != "batch" and (readings or snapshot is not None):
            updates = 0 if snapshot is None else max(accepted - snapshot.updates, 0)
            older = snapshots.older
            layers = blame(
                module,
                readings=readings,
                snapshot=snapshot,
                statistics=statistics,
                older=older,
                updates=updates,
                changes_only=ask == "changes",
                fresh=fresh,
            )
    except Exception as error:
        # Where shards are gathered for it, the other processes would wait for this one.
        if sharded or not out_of_memory(error):
            raise
        warnings.warn(f"GradGuard: no memory to examine the layers, so none is blamed: {error}", RuntimeWarning, 2)
    mine = accused.and_then(lambda batch: ([batch] if batch else []) + list(layers))
    # What one process sees (its batch, its gains) all must know, in the same order.
    merged: dict[str, Suspect] = {}
    for rank, other in enumerate(mine.told(collectives)):
        for suspect in (_seen_on(rank, s) for s in other) if collectives.size > 1 else other:
            known = merged.get(suspect.layer)
            if known is None or suspect.score > known.score:
                merged[suspect.layer] = suspect
    owners = {layer_of(name) for name in parameters} | {"batch"}
    if any(suspect.broken for suspect in merged.values()):
        # A layer that nobody trains (a frozen teacher) can be broken too, and is everybody's.
        owners |= {
            name for name, layer in all_layers(module).items() if not any(p.requires_grad for p in layer.parameters())
        }
    return tuple(s for s in sorted(merged.values(), key=_rank) if s.layer in owners)


def _seen_on(rank: int, suspect: Suspect) -> Suspect:
    """Return a suspect with the process that saw it, if it is a batch: layers are the same on all."""
    return dataclasses.replace(suspect, rank=rank) if suspect.layer == "batch" else suspect


def _rank(suspect: Suspect) -> tuple[float, str]:
    return -suspect.score, suspect.layer
