"""From a step's gradients, weights and loss to its statistics on the host."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from lightning_gradguard.attribution.optimizer_state import spoilt
from lightning_gradguard.history.baseline import LEAP, OUTSIZED, RECENT, YOUNG, Baseline
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.norms import examine, global_norm, host_norms
from lightning_gradguard.statistics.update_ratio import BOUNDED, first_look, moved

FEW = 5
"""Accepted steps in which updates are measured against weights: the first ones tell whether the rate is sane."""
LOSS_EVERY = 8
"""With several processes their losses are averaged once in so many healthy steps, all at a time: they can wait."""


def scale_of(track: OptimizerTrack, scaler: Any) -> float:
    """Return what the gradients at hand are still multiplied by: a fused optimizer unscales them inside its kernel."""
    fused = getattr(track.optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if fused and scaler is not None and scaler.is_enabled() else 1.0


def measure(
    track: OptimizerTrack,
    module: nn.Module,
    collectives: Collectives,
    loss: Tensor | float | None,
    names: tuple[str, ...],
    grads: list[Tensor],
    *,
    step: int,
    scaled: bool,
    scale: float,
) -> GradientStatistics:
    """Reduce the gradients of a step to numbers on the host, waiting for the device where there is one.

    Args:
        track: The optimizer's track.
        module: The root module.
        collectives: The processes that must come to the same verdict.
        loss: The loss of this process.
        names: Names of the parameters that have a gradient.
        grads: Their gradients.
        step: Number of the step.
        scaled: True if a GradScaler owns the step.
        scale: What the gradients are still multiplied by.
    """
    norms = host_norms(grads, sharded=track.sharded)
    if scale != 1.0:
        norms = norms / scale
    norm = global_norm(norms)
    statistics = GradientStatistics(
        step, names, norms, norm, joint_loss(track, collectives, loss, norm), rate=track.rate(), scaled=scaled
    )
    if not statistics.finite:
        statistics = _exactly(track, statistics, grads, scale)
    known = track.baseline
    young = known.count < FEW or (known.count < YOUNG and norm > OUTSIZED * known.typical)
    if young or known.rate_leapt(statistics.rate) or overruns(known, statistics):
        statistics = _with_first_look(track, module, statistics, scale)
    if track.growth is not None and track.fresh:
        statistics = dataclasses.replace(statistics, growth=track.growth)
    if track.tampered:
        largest = math.exp(track.baseline.high_water)
        found = spoilt(track.optimizer, track.parameters, track.snapshots.latest, largest)
        statistics = dataclasses.replace(statistics, spoilt=found)
    return statistics


def overruns(known: Baseline, statistics: GradientStatistics) -> bool:
    """Tell whether an update may be one that overruns the weights, so that it is worth measuring."""
    # The loss first: it says no in nearly every step.
    return known.worse_than_untrained(statistics.loss) and known.outsized(statistics.norm, statistics.rate)


def _exactly(
    track: OptimizerTrack, statistics: GradientStatistics, grads: list[Tensor], scale: float
) -> GradientStatistics:
    norms, counts = examine(grads, sharded=track.sharded)
    norms = norms / scale
    bad = tuple((name, count) for name, count in zip(statistics.names, counts, strict=True) if count)
    return dataclasses.replace(statistics, norms=norms, norm=global_norm(norms), nonfinite=bad)


def _with_first_look(
    track: OptimizerTrack, module: nn.Module, statistics: GradientStatistics, scale: float
) -> GradientStatistics:
    ratio, weight_norm, excess = first_look(module, track.parameters, track.optimizer, scale)
    # A rate that was backed off already makes a smaller update.
    ratio = ratio * track.lr_factor if ratio is not None else None
    first = track.snapshots.first
    if ratio is None and track.baseline.count == 1 and first is not None and not track.sharded:
        # What an optimizer does that nobody foretells is seen in what it did.
        ratio = moved(module, track.parameters, first.parameters)
    track.baseline.looked = statistics.rate or 0.0
    return dataclasses.replace(
        statistics,
        update_ratio=ratio,
        weight_norm=weight_norm,
        weight_excess=excess,
        normalised=type(track.optimizer).__name__ in BOUNDED,
    )


def _can_wait(track: OptimizerTrack, norm: float) -> bool:
    """Tell, alike on all processes, whether nothing calls for the loss as a second witness."""
    if track.incident is not None or track.baseline.count < RECENT:
        return False
    if track.baseline.outsized(norm, track.rate()):
        return False
    # In a young run a limit is wide, and the loss is asked long before it.
    return norm <= (track.limit() if track.baseline.count >= YOUNG else LEAP * track.baseline.typical)


def joint_loss(
    track: OptimizerTrack, collectives: Collectives, loss: Tensor | float | None, norm: float
) -> float | None:
    """Return the loss as all processes must see it, or None while it can wait for the next turn to average."""
    if loss is None:
        return None
    value = float(loss.item() if isinstance(loss, Tensor) else loss)
    if collectives.size == 1:
        return value
    # Each process has a loss of its own, and all must come to the same verdict.
    track.losses.append(value)
    if track.steps % LOSS_EVERY and _can_wait(track, norm):
        return None
    *earlier, now = collectives.mean(track.losses)
    track.baseline.recall(track.shared + earlier)
    track.losses.clear()
    track.shared.clear()
    return now
