"""What is measured of a step, and what is made of it: statistics, verdict, suspects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Form = Literal[
    "sudden",
    "drift",
    "recurrent",
    "non-finite",
    "overflow",
    "cold-start",
    "divergence",
    "rate",
    "state",
    "vanishing",
]
"""The forms of trouble. ``overflow`` is a GradScaler whose scale keeps falling; ``divergence`` is seen in the loss, ``state`` in the
optimizer's own. ``rate``, a rate that had leapt, is found in journals of older versions only."""


FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GradientStatistics:
    """The gradients of one optimizer step, reduced to numbers on the host.

    Args:
        step: Count of optimizer steps before this one.
        names: Parameter names, in the optimizer's order; only parameters that have a gradient.
        norms: L2 norm of each gradient, shape ``(len(names),)``, already unscaled; may hold NaN and inf.
        norm: Global L2 norm, the root of the sum of the squared ``norms``.
        loss: The loss of this step (mean over its micro-batches), or None where it is not known.
        rate: The largest learning rate of the parameter groups, after any back-off; None where asking would cost.
        update_ratio: Largest predicted ``||update|| / ||weight||`` over the weights; measured on the first steps, and where
            the rate leaps.
        normalised: True if the size of an update does not depend on the gradient's (Adam and its kind).
        growth: Growth of the signal's RMS from input to output at the first step, where the network is fresh; None where it was not
            measured.
        variation: How much the network's output depends on its input (deviation over a batch by RMS); measured where a run has not moved.
        spoilt: What is wrong with the optimizer's state; looked at only where somebody else wrote to it.
        nonfinite: ``(name, count of elements)`` of gradients that hold NaN or inf; filled on suspicion only.
        scaled: True if a GradScaler owns this step, so that an overflow is expected now and then.
    """

    step: int
    names: tuple[str, ...]
    norms: FloatArray
    norm: float
    loss: float | None = None
    rate: float | None = None
    update_ratio: float | None = None
    normalised: bool = False
    growth: float | None = None
    variation: float | None = None
    spoilt: str | None = None
    nonfinite: tuple[tuple[str, int], ...] = ()
    scaled: bool = False

    @property
    def finite(self) -> bool:
        """Whether the global norm is a finite number."""
        return math.isfinite(self.norm)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector says of one step, with its evidence.

    Args:
        form: The form of trouble.
        detector: Name of the detector that speaks.
        value: What was measured (for most detectors the global gradient norm).
        limit: What it was compared with.
        reason: One sentence for a person.
        layers: Layers the evidence points at, worst first; may be empty.
        alarm: True asks for a remedy; False only reports.
        examine: True if a remedy is asked for only where a layer is found damaged: what was seen has innocent causes.
    """

    form: Form
    detector: str
    value: float
    limit: float
    reason: str
    layers: tuple[str, ...] = ()
    alarm: bool = True
    examine: bool = False

    @property
    def excess(self) -> float:
        """``value / limit``; infinite where either is not finite, so that a NaN counts as the worst."""
        if math.isfinite(self.value) and math.isfinite(self.limit) and self.limit > 0:
            return self.value / self.limit
        return math.inf


@dataclass(frozen=True, slots=True)
class Suspect:
    """One suspect: a layer (or the batch) with the evidence against it.

    Args:
        layer: Qualified module name; ``"batch"`` accuses the data.
        score: Natural logarithm of how far the strongest evidence lies above what is healthy; higher is worse.
        forward_gain: RMS(out) / RMS(in), or None where it was not measured.
        backward_gain: ||dL/d in|| / ||dL/d out||, or None where it was not measured.
        weight_ratio: RMS of the weights over what its history, or its fan, calls for; None where unknown.
        reason: One sentence for a person.
        broken: True if its parameters are NaN or inf, which no batch can be blamed for.
        rank: The process that saw it, where it is a batch and several processes train together.
        samples: Positions in the batch of the samples that are beyond what is healthy.
    """

    layer: str
    score: float
    reason: str
    forward_gain: float | None = None
    backward_gain: float | None = None
    weight_ratio: float | None = None
    broken: bool = False
    rank: int | None = None
    samples: tuple[int, ...] = ()


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Rebuild a verdict from what :func:`to_json` made of it."""
    numbers = {key: float(data[key]) for key in ("value", "limit")}
    # Older versions wrote whether it was grave.
    known = {key: value for key, value in data.items() if key != "grave"}
    return Verdict(**{**known, **numbers, "layers": tuple(data["layers"])})


def plain_statistics(statistics: GradientStatistics | None) -> dict[str, Any]:
    """Return what the next step is compared with, in the same form where there is nothing yet."""
    seen = [] if statistics is None else [statistics]
    return {
        "step": [s.step for s in seen],
        "names": [name for s in seen for name in s.names],
        "norms": [norm for s in seen for norm in s.norms.tolist()],
        "loss": [s.loss for s in seen if s.loss is not None],
        "rate": [s.rate for s in seen if s.rate is not None],
    }


def statistics_from(plain: dict[str, Any]) -> GradientStatistics | None:
    """Make statistics of what :func:`plain_statistics` returned."""
    if not plain["step"]:
        return None
    norms, names = np.array(plain["norms"], dtype=np.float64), tuple(map(str, plain["names"]))
    loss, rate = (next(map(float, plain[key]), None) for key in ("loss", "rate"))
    return GradientStatistics(int(plain["step"][0]), names, norms, math.sqrt(norms.dot(norms)), loss=loss, rate=rate)
