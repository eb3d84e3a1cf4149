"""The batch as a suspect: compare it with batches of healthy steps."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_gradguard.attribution.weights import LEAST
from lightning_gradguard.records import BATCH, Suspect

CORRUPT = 10.0
"""A batch whose largest element is this many times the largest seen is corrupt, as long as healthy ones were seen."""
TAILS = 3.0
"""Times the distance (of logarithms) from the middle of what was seen to its largest, by which a batch must lie beyond
that: data of heavy tails exceed themselves."""
REMEMBERED = 32
"""Healthy batches that are remembered."""
MANY = 32
"""Samples of a batch that are named at most."""
LEAST_SEEN = 3
"""Healthy batches that tell the scale of the data; each one less asks for :data:`CORRUPT` times more."""


def tensors_in(batch: Any) -> list[Tensor]:
    """Return the tensors in whatever Lightning moves to a device as a batch, in an order that stays.

    Mappings, lists and tuples are gone through, what else torch knows as a container, the fields of dataclasses, and
    what an object holds that has a method ``to``. Each container counts once.
    """
    if isinstance(batch, (list, tuple)) and all(isinstance(part, Tensor) for part in batch):
        return list(batch)  # By far the most common.
    return list(_walk(batch, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, (str, bytes, int, float)) or id(value) in seen:
        return
    parts: Sequence[Any] = ()
    if isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif (leaves := tree_leaves(value)) and leaves[0] is not value:
        parts = leaves
    elif hasattr(value, "to") and not isinstance(value, type):
        parts = _held(value)
    if parts:
        seen.add(id(value))
    for part in parts:
        yield from _walk(part, seen)


def _held(value: Any) -> list[Any]:
    """Return what an object holds: what it says itself (a graph of PyTorch Geometric), or its attributes."""
    try:
        said = value.to_dict()
    except Exception:
        said = getattr(value, "__dict__", {})
    return list(said.values()) if isinstance(said, Mapping) else []


def _floats(batch: Any) -> list[Tensor]:
    tensors = (t for t in tensors_in(batch) if t.is_floating_point() and t.numel())
    # Sparse and jagged tensors have no maximum, and numbers of one byte no comparison.
    return [t for t in tensors if t.layout == torch.strided and t.element_size() > 1]


@torch.no_grad()
def largest(batch: Any, device: torch.device | None = None) -> list[Tensor]:
    """Return the largest absolute element of each float tensor in a batch (on ``device``), there; NaN if one is."""
    return [torch.linalg.vector_norm(t, math.inf) for t in _floats(batch) if device in (None, t.device)]


def scales(batch: Any) -> list[float]:
    """Return the largest absolute element of each float tensor in a batch, 0 of so few that they tell no scale."""
    found = zip(largest(batch), _floats(batch), strict=True)
    return [float(peak) if tensor.numel() >= LEAST else 0.0 for peak, tensor in found]


def _samples(tensor: Tensor, limit: float) -> tuple[int, ...]:
    """Return the samples, along the first dimension, with an element that is NaN, inf or beyond a limit.

    Where all have one, of several, it is the batch that is at fault, and none of them.
    """
    fine = tensor.reshape(len(tensor) if tensor.ndim else 1, -1).abs().amax(1) <= limit
    if len(fine) > 1 and not fine.any():
        return ()
    return tuple((~fine).nonzero().flatten().tolist()[:MANY])


class BatchWitness:
    """Remember how large healthy batches are, and accuse one that is not finite or far larger.

    Healthy batches are looked at only when a snapshot is taken, so the healthy path pays next to nothing.
    """

    def __init__(self) -> None:
        # The largest element of each tensor, for each healthy batch.
        self._peaks: list[list[float]] = []
        # Healthy ones hold NaN: what is missing is marked so, and the model knows.
        self._gaps = False

    @property
    def knows_few(self) -> bool:
        """Whether fewer healthy batches have been seen than tell the scale of the data."""
        return len(self._peaks) < LEAST_SEEN

    @torch.no_grad()
    def remember(self, batch: Any) -> None:
        """Note the largest absolute element of each float tensor in a healthy batch."""
        self.learn([float(peak) for peak in largest(batch)])

    def learn(self, peaks: list[float]) -> None:
        """Note the largest absolute elements of a healthy batch."""
        self._gaps = self._gaps or any(map(math.isnan, peaks))
        if not peaks or not all(map(math.isfinite, peaks)):
            return
        if self._peaks and len(peaks) != len(self._peaks[0]):
            self._peaks = []
        self._peaks = [*self._peaks[1 - REMEMBERED :], peaks]

    @torch.no_grad()
    def accuse(self, batch: Any) -> Suspect | None:
        """Return the evidence against ``batch``, or None."""
        if self._gaps:
            return None
        tensors = _floats(batch)
        for tensor in tensors:
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                reason = f"{bad} of {tensor.numel()} elements of the batch are NaN or inf"
                return Suspect(BATCH, math.inf, reason, samples=_samples(tensor, sys.float_info.max))
        peaks = [float(peak) for peak in largest(batch)]
        found, beyond = self.accuse_peaks(peaks), self._beyond(peaks)
        if found is None or beyond is None:
            return found
        return dataclasses.replace(found, samples=_samples(tensors[beyond[0]], beyond[1]))

    def accuse_peaks(self, peaks: Sequence[float]) -> Suspect | None:
        """Return the evidence against a batch of which only the largest absolute elements are left, or None."""
        if self._gaps:
            return None
        if not all(map(math.isfinite, peaks)):
            return Suspect(BATCH, math.inf, "the batch holds NaN or inf")
        if (found := self._beyond(peaks)) is None:
            return None
        which, _, largest_seen = found
        ratio = peaks[which] / largest_seen
        reason = f"the batch's largest element is {peaks[which]:.3g}, {ratio:.3g} x the largest of healthy batches"
        return Suspect(BATCH, math.log(ratio), reason)

    def _beyond(self, peaks: Sequence[float]) -> tuple[int, float, float] | None:
        """Return which tensor is far larger than in healthy batches, its limit, and the largest seen; None for none."""
        if not self._peaks or len(peaks) != len(self._peaks[0]):
            return None
        least = CORRUPT ** (1 + max(LEAST_SEEN - len(self._peaks), 0))
        for which, (peak, *seen) in enumerate(zip(peaks, *self._peaks, strict=True)):
            known = sorted(seen)
            middle, largest_seen = known[len(known) // 2], known[-1]
            if not middle > 0.0:
                continue
            beyond = max(least, (largest_seen / middle) ** TAILS)
            if peak > beyond * largest_seen:
                return which, beyond * largest_seen, largest_seen
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {"peaks": [list(seen) for seen in self._peaks], "gaps": self._gaps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._peaks = [[float(p) for p in seen] for seen in state["peaks"]]
        self._gaps = bool(state["gaps"])
