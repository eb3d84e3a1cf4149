"""The optimizer's own state as a suspect: momentum and second moments that somebody else has written to.

No gradient tells of it, and the first update that is made from it is already a bad one. To read all of the state at
every step would cost more than a clip; whether it was written to is told by the count of writes that torch keeps with
every tensor.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from heapq import nlargest
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.errors import out_of_memory
from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.snapshots.snapshot import Snapshot
from lightning_gradguard.statistics.norms import exact_norm, local

WATCHED = 64
"""Tensors that are watched, the largest: each has to be fetched from memory, which is felt from some hundred on."""
LOUDER = 30.0
"""Times its size in the snapshot, or less than one over it, that a tensor of the state must have changed by."""
MARGIN = 3.0
"""Times the largest that gradients can have made of it, for what else enters a moment (weight decay)."""
SECOND = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"})
"""Tensors of the state that hold squares of gradients."""

_version = Tensor._version.__get__  # type: ignore[attr-defined]


class StateWatch:
    """Notice where anybody but the optimizer has written to its state between two steps.

    An optimizer makes the same count of in-place writes at every step, so more than ever before have another author.
    What goes past that count (``.data``, another process, a bit that flips by itself) is not seen.

    Args:
        optimizer: The optimizer.

    Attributes:
        interval: When the state is examined because it was written to.
        tampered: Whether it is to be examined before the step at hand.
        usual: Writes of a step that is made; None until one has been seen.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.interval = ExponentialInterval()
        self.tampered = False
        self._state: Mapping[Tensor, Any] | None = None
        self._entries = 0
        self._tensors: list[Tensor] = []
        self._writes = 0
        self.usual: int | None = None
        # Whether the last step was skipped.
        self._skipped = False

    def look(self, step: int, *, alone: bool) -> None:
        """Find out whether the state was written to, and is to be examined before this step.

        Only where this process is ``alone``: several might find different answers, and must not decide differently.
        """
        self.tampered = alone and self.written() and self.interval.due(step)

    def written(self) -> bool:
        """Return whether anybody but the optimizer wrote to its state since the last step; called once before each."""
        state = self._optimizer.state
        if state is not self._state or len(state) != self._entries:
            replaced = self._state is not None and state is not self._state
            if self._state is not None:
                self.usual = None
            self._state, self._entries = state, len(state)
            self._look_up()
            return replaced
        before, self._writes = self._writes, sum(map(_version, self._tensors))
        new = self._writes - before
        skipped, self._skipped = self._skipped, False
        if self.usual is None:
            self.usual = None if skipped else new
            return False
        # Fewer are those of a step in which some parameters had no gradient; none, of tensors that have been replaced.
        return new > self.usual or (new == 0 < self.usual and not skipped and self._look_up())

    def skip(self) -> None:
        """Note that the step at hand is not made."""
        self._skipped = True

    def _look_up(self) -> bool:
        """Look up the tensors, and tell whether they are others than before."""
        held = [value for entry in (self._state or {}).values() for value in _moments(entry).values()]
        known, self._tensors = self._tensors, nlargest(WATCHED, held, key=Tensor.numel)
        try:
            self._writes = sum(map(_version, self._tensors))
        except RuntimeError:  # tensors made in inference mode keep no count
            self._tensors = []
        return len(known) != len(self._tensors) or any(map(operator.is_not, known, self._tensors))


def _moments(entry: Any) -> dict[str, Tensor]:
    """Return the tensors of one parameter's state that are more than a count."""
    items = entry.items() if isinstance(entry, dict) else ()
    return {key: value for key, value in items if isinstance(value, Tensor) and value.dim() and value.numel()}


@torch.no_grad()
def spoilt(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], snapshot: Snapshot | None, largest: float
) -> str | None:
    """Return what is wrong with the optimizer's state, in words, or None if it may well be the optimizer's own.

    Wrong is what is not finite; what is far larger than in the snapshot, and larger than a sum of gradients can be; and
    Adam's second moment where it has faded though the first, which it divides, has not: it forgets a tenth in a hundred
    steps at most.

    Args:
        optimizer: The optimizer.
        parameters: Its parameters by name.
        snapshot: A state known to be good; without one only what is not finite is wrong.
        largest: Largest global gradient norm that the run has survived.
    """
    try:
        sizes = {(name, key): (now, before) for name, key, now, before in _sizes(optimizer, parameters, snapshot)}
    except Exception as error:
        if not out_of_memory(error):
            raise
        warnings.warn(f"GradGuard: no memory to examine the optimizer's state: {error}", RuntimeWarning, 2)
        return None
    for (name, key), (now, before) in sizes.items():
        if not math.isfinite(now) and (before is None or math.isfinite(before)):
            return f"{key} of {name} is not finite"
        # The sum of a geometric series of gradients, with the momentum of 0.9 that nearly all have; of squares that are
        # averaged.
        bound = largest**2 if key in SECOND else 10.0 * largest
        if before is not None and now > LOUDER * before and now > MARGIN * bound > 0.0:
            return f"{key} of {name} has a norm of {now:.3g}, in the snapshot {before:.3g}"
        first, first_before = sizes.get((name, "exp_avg"), (0.0, None))
        faded = key == "exp_avg_sq" and before is not None and now * LOUDER < before
        if faded and first_before is not None and first * LOUDER > first_before:
            told = f"{key} of {name} has a norm of {now:.3g}, in the snapshot {before:.3g}"
            return f"{told}, and exp_avg is as large as ever"
    return None


def _sizes(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], snapshot: Snapshot | None
) -> Iterator[tuple[str, str, float, float | None]]:
    """Yield parameter, key, norm now and norm in the snapshot (None where unknown) of each tensor of the state."""
    for name, parameter in parameters.items():
        saved = {} if snapshot is None else _moments(snapshot.optimizer_state.get(name))
        for key, value in _moments(optimizer.state.get(parameter)).items():
            if value.is_floating_point() or value.is_complex():
                yield name, key, _norm(value), _norm(saved[key]) if key in saved else None


def _norm(tensor: Tensor) -> float:
    return exact_norm(local(tensor.detach()))[0]
