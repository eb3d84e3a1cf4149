"""Whether Adam's second moment still follows the squared gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_gradguard.arriving import Arriving
from lightning_gradguard.records import FloatArray, Window
from lightning_gradguard.witnesses.witness import Witness, WitnessContext

ELEMENTS = 256
"""Elements of each matrix that are looked at: enough for a mean to some percent, and no copy of the gradients."""
MATRICES = 128
"""Matrices that are looked at, the largest: each costs some microseconds."""
LEAST_STEPS = 20
"""Updates before which a second moment is the mean of too few squares to tell anything."""


class SecondMoment(Witness):
    """Measure how far gradients lie above the root of the second moment that is to divide them.

    The number is ``sqrt(mean(g^2 / max(v, eps^2)))`` of a matrix: about 1 while ``v`` follows the squared gradient, and
    far above where it is out of date, so that the update is larger than the rate says. It is that of Adafactor (Shazeer
    and Stern, 2018), which Wortsman et al. (2023, "Stable and low-precision training for large-scale vision-language
    models") saw rise above 2.3 some steps before spikes of the loss. Here ``v`` is the bias-corrected moment *before*
    it has taken in this gradient, so that the ratio has no upper bound. Adam, AdamW, NAdam, RAdam, RMSprop and Adadelta
    keep such a moment for each element; Adafactor and quantised optimizers do not, and of them nothing is said.
    """

    name: ClassVar[str] = "second_moment"
    times: ClassVar[float] = 5.0
    least: ClassVar[float] = 2.3

    def __init__(self) -> None:
        self._known: Sequence[str] = ()
        self._matrices: list[int] = []
        self._clear()

    def _clear(self) -> None:
        self._names: list[str] = []
        self._starts = np.zeros(1, np.int64)
        self._decays: list[tuple[float, float]] = []
        self._seen: Arriving | None = None
        self._steps: Arriving | None = None

    @torch.no_grad()
    def look(self, scene: WitnessContext) -> None:
        """Send a sample of gradients and second moments on its way to the host."""
        self._clear()
        if scene.names != self._known:
            self._known, self._matrices = scene.names, _largest(scene.grads)
        groups = {id(p): group for group in scene.optimizer.param_groups for p in group["params"]}
        grads, moments, steps = [], [], []
        for name, grad in ((scene.names[i], scene.grads[i]) for i in self._matrices):
            parameter = scene.parameters[name]
            state = scene.optimizer.state.get(parameter)
            found = _moment(state, groups.get(id(parameter))) if _plain(grad) else None
            if found is None or found[0].shape != grad.shape:
                continue
            moment, decay = found
            # An odd stride falls on all columns of a matrix whose width is even.
            stride = (grad.numel() // ELEMENTS) | 1
            grads.append(grad.reshape(-1)[::stride])
            moments.append(moment.reshape(-1)[::stride])
            steps.append(torch.as_tensor(state["step"], dtype=torch.float32))  # type: ignore[index]
            self._names.append(name)
            self._decays.append(decay)
        if grads:
            self._starts = np.cumsum([0, *(len(grad) for grad in grads[:-1])])
            self._seen = Arriving(torch.stack([torch.cat(grads).float() / scene.scale, torch.cat(moments).float()]))
            self._steps = Arriving(torch.stack(steps))

    def take(self, window: Window) -> dict[str, float]:
        """Return the root mean square of the gradient over the root of the moment, by parameter."""
        if self._seen is None or self._steps is None:
            return {}
        seen, steps, names = self._seen.read(), self._steps.read(), self._names
        decay, eps = np.array(self._decays).T
        ratios = root_mean_ratio(seen[0], seen[1], self._starts, correction=1.0 - decay**steps, eps=eps)
        self._clear()
        return {
            name: ratio
            for name, ratio, count in zip(names, ratios.tolist(), steps.tolist(), strict=True)
            if count >= LEAST_STEPS
        }


def root_mean_ratio(
    gradient: FloatArray, moment: FloatArray, starts: Any, *, correction: FloatArray, eps: FloatArray
) -> FloatArray:
    """Return ``sqrt(mean(g^2 / max(v, eps^2)))`` of each of several tensors that lie one after the other.

    Args:
        gradient: Elements of the gradients, shape ``(n,)``.
        moment: The same elements of the second moments, not bias-corrected.
        starts: Index of each tensor's first element, shape ``(tensors,)``.
        correction: What each tensor's moment is divided by.
        eps: Of its optimizer.
    """
    sizes = np.diff(np.append(starts, len(gradient)))
    with np.errstate(all="ignore"):
        corrected = moment / np.repeat(correction, sizes)
        ratio = gradient**2 / np.maximum(corrected, np.repeat(eps**2, sizes))
        found: FloatArray = np.sqrt(np.add.reduceat(ratio, starts) / sizes)
    return found


def _largest(grads: Sequence[Tensor]) -> list[int]:
    """Return which of these are the largest matrices, in their order."""
    matrices = [i for i, grad in enumerate(grads) if grad.dim() > 1]
    return sorted(nlargest(MATRICES, matrices, key=lambda i: grads[i].numel()))


def _plain(grad: Tensor) -> bool:
    return grad.layout == torch.strided and grad.is_floating_point() and grad.numel() > 0


def _moment(state: Any, group: Mapping[str, Any] | None) -> tuple[Tensor, tuple[float, float]] | None:
    """Return the average of squared gradients in a parameter's state, with its decay and eps; None if there is none."""
    if not isinstance(state, dict) or group is None or "step" not in state:
        return None
    betas, eps = group.get("betas"), float(group.get("eps") or 0.0)
    if isinstance(moment := state.get("exp_avg_sq"), Tensor) and isinstance(betas, (tuple, list)):
        return moment, (float(betas[1]), max(eps, 1e-30))
    decay = group.get("alpha", group.get("rho"))
    if isinstance(moment := state.get("square_avg"), Tensor) and isinstance(decay, float):
        return moment, (decay, max(eps, 1e-30))
    return None
