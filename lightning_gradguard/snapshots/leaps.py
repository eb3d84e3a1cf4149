"""Running statistics that have leapt. One idea: the next batch tells whether the data have made them leap.

What a layer's own forward pass makes of its running statistics lies between them and those of its batches. Somebody
else's number does not, and the batches that come are as before: then the statistics are put back. Data of a new scale,
and statistics that were loaded with their weights, agree with the batches that come, and stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_gradguard.layers.names import clean, compiled

LEAP_OF_ANOTHER = 100.0
"""Times the variance, where somebody wrote to the statistics, or they changed without a batch."""
FARTHER = 10.0
"""Times farther from the batch's own variance than before."""
WAITED = 3
"""Accepted steps in which a batch has to come through the layer."""
A_MEASURE = 8
"""Numbers of a channel from which a batch is a measure."""
_version = Tensor._version.__get__  # type: ignore[attr-defined]
Pair = tuple[Tensor, Tensor]
View = tuple[Tensor, _NormBase, str]
"""All elements of a buffer, the layer that has it, and what it is called there."""


@dataclass(slots=True)
class _Leap:
    """What a layer's statistics were and are, and those of the batch that came after."""

    layer: _NormBase
    before: dict[str, Tensor]
    now: dict[str, Tensor]
    batch: Pair | None = None
    waited: int = 0
    hooks: list[Any] = field(default_factory=list)


class Leaps:
    """Know which layers' statistics have leapt, and look at the batch that comes next.

    Args:
        module: The root module.

    Attributes:
        waiting: Layers whose next batch is waited for.
        told: Names of the layers whose statistics were put back, until somebody has told of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.waiting: list[_Leap] = []
        self.told: list[str] = []
        self._marks: dict[int, int] = {}

    def mark(self, layer: _NormBase) -> bool:
        """Note how often a layer's statistics were written to; return whether that was done since the last time.

        The layer itself writes to them without a trace there.
        """
        marks = sum(_version(b) for b in (layer.running_mean, layer.running_var) if b is not None)
        earlier, self._marks[id(layer)] = self._marks.get(id(layer), marks), marks
        return bool(earlier != marks)

    def compare(self, views: Sequence[View], before: Tensor, now: Tensor) -> None:
        """Compare the buffers of all layers, as bytes one after the other, with what they were."""
        sizes, pairs = [view.nbytes for view, *_ in views], dict[_NormBase, dict[str, Pair]]()
        for (view, layer, key), then, since in zip(
            views, torch.split(before, sizes), torch.split(now, sizes), strict=True
        ):
            pairs.setdefault(layer, {})[key] = then.view(view.dtype), since.view(view.dtype)
        for layer, found in pairs.items():
            # Instance normalisation writes to its statistics as anybody does, and counts no batches.
            known = isinstance(layer, _BatchNorm) and {"running_mean", "running_var"} <= found.keys()
            if known and not any(leap.layer is layer for leap in self.waiting):
                self.suspect(layer, found)

    def suspect(self, layer: _NormBase, pairs: Mapping[str, Pair]) -> None:
        """Wait for the next batch of a layer if its statistics have leapt.

        Args:
            layer: The layer.
            pairs: Each of its buffers as it was and as it is.
        """
        written = self.mark(layer)
        count = pairs.get("num_batches_tracked")
        unseen = count is not None and bool(torch.equal(*count))
        before, now = ({key: pair[i].clone() for key, pair in pairs.items()} for i in (0, 1))
        if not (written or unseen) or compiled(self._module):
            return  # A batch far larger than any leaves its trace, as it does without a guard.
        if any(bool(leapt.any()) for leapt in _leapt(before, now)):
            leap = _Leap(layer, before, now)
            leap.hooks.append(layer.register_forward_pre_hook(partial(self._see, leap)))
            self.waiting.append(leap)

    @torch.no_grad()
    def _see(self, leap: _Leap, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Measure a batch as the layer does."""
        batch = inputs[0] if inputs else None
        channels = leap.layer.num_features
        if not self._module.training or not isinstance(batch, Tensor) or batch.dim() < 2 or batch.shape[1] != channels:
            return
        if batch.numel() >= A_MEASURE * channels:
            var, mean = torch.var_mean(batch.float(), [d for d in range(batch.dim()) if d != 1], correction=0)
            leap.batch = mean.cpu(), var.cpu()

    def unsee(self) -> None:
        """Forget a batch whose step was skipped: it is no measure."""
        for leap in self.waiting:
            leap.batch = None

    def settle(self, *, last: bool = False) -> list[tuple[_NormBase, dict[str, Tensor]]]:
        """Return the layers whose statistics are to be put back, with what they were.

        Args:
            last: Whether no batch will come: what somebody else has written does not stay.
        """
        back, still = [], []
        for leap in self.waiting:
            leap.waited += 1
            if (last and leap.batch is None) or _strange(leap):
                back.append((leap.layer, leap.before))
            elif leap.batch is None and leap.waited < WAITED and not last:
                still.append(leap)
                continue
            for hook in leap.hooks:
                hook.remove()
        self.waiting = still
        names = {id(layer): clean(name) for name, layer in self._module.named_modules()} if back else {}
        self.told += [names.get(id(layer), "a normalisation") for layer, _ in back]
        return back

    def drop(self) -> None:
        """Take the hooks off."""
        for leap in self.waiting:
            for hook in leap.hooks:
                hook.remove()
        self.waiting = []


def _leapt(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return of each channel whether its mean, and whether its variance, has leapt."""
    mean, var = (before[key].double() for key in ("running_mean", "running_var"))
    # A unit that was dead has next to no variance.
    usual = torch.maximum(var, var.mean())
    moved = (now["running_mean"].double() - mean).square()
    return moved > LEAP_OF_ANOTHER * (mean.square() + usual), now["running_var"].double() > LEAP_OF_ANOTHER * usual


def _strange(leap: _Leap) -> bool:
    """Return whether a batch has come that the statistics fit far worse than those from before the leap."""
    if leap.batch is None or not all(bool(values.isfinite().all()) for values in leap.batch):
        return False
    mean, var = (values.double() for values in leap.batch)
    was, now = ({key: values.double() for key, values in held.items()} for held in (leap.before, leap.now))
    least = leap.layer.eps
    logs = [values.clamp_min(least).log() for values in (var, was["running_var"], now["running_var"])]
    wide = (logs[0] - logs[2]).abs() - (logs[0] - logs[1]).abs() > math.log(FARTHER)
    near = (mean - was["running_mean"]).abs() + was["running_var"].clamp_min(least).sqrt()
    far = (mean - now["running_mean"]).abs() > FARTHER * near
    leapt = _leapt(was, now)
    count = int((leapt[0] | leapt[1]).sum())
    return 2 * int(((leapt[0] & far) | (leapt[1] & wide)).sum()) > count


def grown(squares: float, before: float) -> bool:
    """Return whether a sum of squares has doubled, as a leap of any element that counts makes it."""
    return squares > 2.0 * before


def power(values: Tensor) -> float:
    """Return the sum of squares, NaN where it would be costly.

    It takes a third of the time of a maximum: the code for a dot product is at hand from the gradients' norm.
    """
    if values.dtype not in (torch.float32, torch.float64):
        return math.nan
    array = values.numpy()
    with np.errstate(over="ignore"):
        return float(array.dot(array))
