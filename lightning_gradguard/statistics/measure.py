"""From a step's gradients, weights and loss to its statistics on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_gradguard.attribution.optimizer_state import spoilt
from lightning_gradguard.history.baseline import LEAP, OUTSIZED, RECENT, YOUNG, Baseline
from lightning_gradguard.optimizer_track import Lane
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.statistics.norms import examine, global_norm, host_norms
from lightning_gradguard.statistics.update_ratio import BOUNDED, first_look, moved

FEW = 5
"""Accepted steps in which updates are measured against weights: the first ones tell whether the rate is sane."""
LOSS_EVERY = 8
"""With several processes their losses are averaged once in so many healthy steps, all at a time: they can wait."""


def _alone(value: Any) -> list[Any]:
    # A function of the module, since strategies that spawn processes pickle the callback.
    return [value]


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train together; by default there is one.

    Args:
        size: Number of processes.
        mean: Averages each number over the processes.
        gather: Returns one object of each process, in the order of their ranks.
    """

    size: int = 1
    mean: Callable[[list[float]], list[float]] = list
    gather: Callable[[Any], list[Any]] = _alone


def scale_of(lane: Lane, scaler: Any) -> float:
    """Return what the gradients at hand are still multiplied by: a fused optimizer unscales them inside its kernel."""
    fused = getattr(lane.optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if fused and scaler is not None and scaler.is_enabled() else 1.0


def measure(
    lane: Lane,
    module: nn.Module,
    team: Team,
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
        lane: The optimizer's lane.
        module: The root module.
        team: The processes that must come to the same verdict.
        loss: The loss of this process.
        names: Names of the parameters that have a gradient.
        grads: Their gradients.
        step: Number of the step.
        scaled: True if a GradScaler owns the step.
        scale: What the gradients are still multiplied by.
    """
    norms = host_norms(grads, sharded=lane.sharded)
    if scale != 1.0:
        norms = norms / scale
    norm = global_norm(norms)
    statistics = GradientStatistics(
        step, names, norms, norm, joint_loss(lane, team, loss, norm), rate=lane.rate(), scaled=scaled
    )
    if not statistics.finite:
        statistics = _exactly(lane, statistics, grads, scale)
    known = lane.baseline
    young = known.count < FEW or (known.count < YOUNG and norm > OUTSIZED * known.typical)
    if young or known.rate_leapt(statistics.rate) or overruns(known, statistics):
        statistics = _with_first_look(lane, module, statistics, scale)
    if lane.growth is not None and lane.fresh:
        statistics = dataclasses.replace(statistics, growth=lane.growth)
    if lane.tampered:
        largest = math.exp(lane.baseline.high_water)
        found = spoilt(lane.optimizer, lane.parameters, lane.snapshots.latest, largest)
        statistics = dataclasses.replace(statistics, spoilt=found)
    return statistics


def overruns(known: Baseline, statistics: GradientStatistics) -> bool:
    """Tell whether an update may be one that overruns the weights, so that it is worth measuring."""
    # The loss first: it says no in nearly every step.
    return known.worse_than_untrained(statistics.loss) and known.outsized(statistics.norm, statistics.rate)


def _exactly(lane: Lane, statistics: GradientStatistics, grads: list[Tensor], scale: float) -> GradientStatistics:
    norms, counts = examine(grads, sharded=lane.sharded)
    norms = norms / scale
    bad = tuple((name, count) for name, count in zip(statistics.names, counts, strict=True) if count)
    return dataclasses.replace(statistics, norms=norms, norm=global_norm(norms), nonfinite=bad)


def _with_first_look(lane: Lane, module: nn.Module, statistics: GradientStatistics, scale: float) -> GradientStatistics:
    ratio, weight_norm, excess = first_look(module, lane.parameters, lane.optimizer, scale)
    # A rate that was backed off already makes a smaller update.
    ratio = ratio * lane.lr_factor if ratio is not None else None
    first = lane.snapshots.first
    if ratio is None and lane.baseline.count == 1 and first is not None and not lane.sharded:
        # What an optimizer does that nobody foretells is seen in what it did.
        ratio = moved(module, lane.parameters, first.parameters)
    lane.baseline.looked = statistics.rate or 0.0
    return dataclasses.replace(
        statistics,
        update_ratio=ratio,
        weight_norm=weight_norm,
        weight_excess=excess,
        normalised=type(lane.optimizer).__name__ in BOUNDED,
    )


def _can_wait(lane: Lane, norm: float) -> bool:
    """Tell, alike on all processes, whether nothing calls for the loss as a second witness."""
    if lane.incident is not None or lane.baseline.count < RECENT:
        return False
    if lane.baseline.outsized(norm, lane.rate()):
        return False
    # In a young run a limit is wide, and the loss is asked long before it.
    return norm <= (lane.limit() if lane.baseline.count >= YOUNG else LEAP * lane.baseline.typical)


def joint_loss(lane: Lane, team: Team, loss: Tensor | float | None, norm: float) -> float | None:
    """Return the loss as all processes must see it, or None while it can wait for the next turn to average."""
    if loss is None:
        return None
    value = float(loss.item() if isinstance(loss, Tensor) else loss)
    if team.size == 1:
        return value
    # Each process has a loss of its own, and all must come to the same verdict.
    lane.losses.append(value)
    if lane.steps % LOSS_EVERY and _can_wait(lane, norm):
        return None
    *earlier, now = team.mean(lane.losses)
    lane.baseline.recall(lane.shared + earlier)
    lane.losses.clear()
    lane.shared.clear()
    return now
