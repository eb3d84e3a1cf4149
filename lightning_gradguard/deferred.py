"""The healthy step on an accelerator: its device judges it at once, the host one step later and without waiting.

Only where nothing is amiss: young runs, incidents, snapshots and everything unusual are judged by the host, which waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradguard.attribution.batch import largest
from lightning_gradguard.device_gate import DeviceGate, Flight
from lightning_gradguard.history.baseline import YOUNG
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import GENTLE
from lightning_gradguard.records import GradientStatistics, Outcome, Suspect
from lightning_gradguard.remedies import Clip
from lightning_gradguard.snapshots.when import worth_keeping
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.measure import joint_loss
from lightning_gradguard.statistics.norms import global_norm

DEVICES = frozenset({"cuda"})
"""Devices that work on while the host does something else, and that can compare in float64."""
CLOSE = 20
"""Steps that the host judges at once after an alarm that calls for more than the device can do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a step when the next one is about to be made.

    Args:
        statistics: Its gradients.
        coefficient: What the device multiplied them by: 1 untouched, 0 held.
        accused: The evidence against its batch, or None.
        batch_index: The number of that batch.
    """

    statistics: GradientStatistics
    coefficient: float
    accused: Suspect | None
    batch_index: int | None

    @property
    def outcome(self) -> Outcome:
        """What was done, as the outcome of the remedy that would have done it."""
        if self.coefficient > 0.0:
            norm = self.statistics.norm
            detail = f"norm {norm:.3g} clipped to {norm * self.coefficient:.3g} on the device"
            return Outcome("clip", True, detail, (), self.coefficient)
        return Outcome("skip", True, "held the step on the device: its gradients did not count", (), 0.0)


def ready(
    track: OptimizerTrack, *, act: bool, scaler: Any, awaited: bool
) -> tuple[tuple[str, ...], list[Tensor]] | None:
    """Return names and gradients of a step that may be left to one of :data:`DEVICES`; None where the host must judge it."""
    if (
        track.device not in DEVICES
        or track.incident is not None
        or track.check_up
        or track.tampered
        or awaited
        or track.baseline.count < YOUNG
        or track.steps < track.watchful
    ):
        return None
    if (scaler is not None and scaler.is_enabled()) or track.sharded or not _parts_can_wait(track, act=act):
        return None
    rate, last = track.rate(), track.last
    if last is None or rate is None or track.baseline.rate_leapt(rate):
        return None
    if act and track.snapshots.due(track.steps) and worth_keeping(track, track.steps, last):
        return None
    names, grads = track.gradients()
    return (names, grads) if names == last.names and DeviceGate.fits(grads) else None


def _parts_can_wait(track: OptimizerTrack, *, act: bool) -> bool:
    # LBFGS makes many updates in one step, with the gradients between them out of sight.
    if isinstance(track.optimizer, torch.optim.LBFGS) or not all(d.deferrable for d in track.detectors):
        return False
    clip = track.remedies.get("clip")
    first_aid = isinstance(clip, Clip) and clip.algorithm == "norm" and "skip" in track.remedies
    seen = any(d.name == "non-finite" for d in track.detectors)
    # With no patience the first alarm asks for a slow remedy, which would find the weights of a step later.
    return not act or (first_aid and seen and track.policy.patience > 1 and all(r.deferrable for r in track.lasting))


def launch(
    track: OptimizerTrack,
    names: tuple[str, ...],
    grads: list[Tensor],
    *,
    act: bool,
    step: int,
    loss: Tensor | float | None,
    batch: Any,
    batch_index: int | None,
) -> Tensor:
    """Leave a step to the device; return whether its update is made, as a tensor there.

    Args:
        track: The optimizer's track.
        names: Names of the parameters that have a gradient.
        grads: Their gradients.
        act: False only measures.
        step: Number of the step.
        loss: Its loss.
        batch: Its batch.
        batch_index: The number of that batch.
    """
    limit = track.limit()
    there = isinstance(loss, Tensor) and loss.device == grads[0].device
    passed = track.gate.judge(
        track.optimizer,
        grads,
        limit=limit,
        target=track.target(limit),
        gentle=GENTLE,
        act=act,
        loss=loss if there else None,  # type: ignore[arg-type]
        peaks=_peaks(batch, grads[0].device),
    )
    track.flight = Flight(step, names, None if there or loss is None else float(loss), track.rate(), batch_index)
    return passed


def _peaks(batch: Any, device: torch.device) -> Sequence[Tensor]:
    return largest(batch, device) if batch is not None else ()


def collect(track: OptimizerTrack, collectives: Collectives) -> Finding | None:
    """Return what the device found at the last step, if it was left to it."""
    reading, flight = track.gate.collect(), track.flight
    if reading is None or flight is None:
        return None
    track.flight = None
    norm = global_norm(reading.norms)
    loss = joint_loss(track, collectives, flight.loss if reading.loss is None else reading.loss, norm)
    # Elements can no longer be counted: the gradients are gone.
    bad = (
        () if math.isfinite(norm) else tuple((flight.names[i], 0) for i in np.flatnonzero(~np.isfinite(reading.norms)))
    )
    statistics = GradientStatistics(
        flight.step, flight.names, reading.norms, norm, loss, rate=flight.rate, nonfinite=bad
    )
    return Finding(statistics, reading.coefficient, track.batches.accuse_peaks(reading.peaks), flight.batch_index)
