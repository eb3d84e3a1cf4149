"""What is measured of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
        update_ratio: Largest predicted ``||update|| / ||weight||`` over the weights; measured on the first steps, and
            where the rate leaps.
        normalised: True if the size of an update does not depend on the gradient's (Adam and its kind).
        by_sign: True if that of no later update does either: Rprop keeps nothing but the signs.
        growth: Growth of the signal's RMS from input to output at the first step, where the network is fresh; None
            where it was not measured.
        variation: How much the network's output depends on its input (deviation over a batch by RMS); measured where a
            run has not moved.
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
    by_sign: bool = False
    growth: float | None = None
    variation: float | None = None
    spoilt: str | None = None
    nonfinite: tuple[tuple[str, int], ...] = ()
    scaled: bool = False

    @property
    def finite(self) -> bool:
        """Whether the global norm is a finite number."""
        return math.isfinite(self.norm)


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
