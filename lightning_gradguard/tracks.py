"""The optimizers of a run, in the order in which they were met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.parts import Parts
from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.track_state import go_on_from, state_of


class Tracks:
    """Know the track of each optimizer, and keep what was learned of those that are not met yet.

    Args:
        parts: What each track has copies of.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._met: dict[int, OptimizerTrack] = {}
        self._waiting: dict[str, Any] = {}

    def __iter__(self) -> Iterator[OptimizerTrack]:
        """Go through the tracks."""
        return iter(self._met.values())

    def __contains__(self, track: object) -> bool:
        """Return whether a track is one of them."""
        return any(track is one for one in self)

    def __len__(self) -> int:
        """Return how many optimizers have been met."""
        return len(self._met)

    def of(self, optimizer: torch.optim.Optimizer) -> OptimizerTrack | None:
        """Return the track of an optimizer, None of one that has not been met."""
        return self._met.get(id(optimizer))

    def meet(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[OptimizerTrack, Any]:
        """Make the track of an optimizer; return it with what was learned of it before, None where that is nothing."""
        track = OptimizerTrack(len(self._met), module, optimizer, self._parts)
        self._met[id(optimizer)] = track
        return track, self._waiting.pop(str(track.index), None)

    def augment(self, batch: Any) -> None:
        """Augment a batch by the first remedy that does so now; a second one would put back what the first has made."""
        any(track.remedies.before_forward(batch) for track in self)

    def before_backward(self) -> bool:
        """Look for gradients that were stepped by already, and have them cleared where that was decided for one.

        Returns:
            Whether nobody else clears them.
        """
        for track in self:
            found = track.parameters.values()
            # A look at a shard would have to be shared.
            if not track.sharded and track.stale.before_backward(found):
                # It is one loop that forgets it.
                track.stale.cleared(done=any(one.remedies.before_backward(found) for one in self))
        return any(track.stale.piled_up for track in self)

    def follow(self, loss: Tensor) -> None:
        """Learn the forward order of the layers from the graph of a loss."""
        for track in self:
            track.follow(loss)

    def forget_losses(self) -> None:
        """Forget all losses."""
        for track in self:
            track.baseline.forget_losses()

    def after_step(self) -> None:
        """Undo what was changed for an update that was not reached; else it was done when the update was made."""
        for track in self:
            if track.remedies.touched:
                track.after_update()

    def forget(self) -> None:
        """Forget what was learned of optimizers that are not met yet."""
        self._waiting = {}

    def close(self) -> None:
        """Put everything back, and take all hooks off."""
        for track in self:
            track.close()

    def leave(self) -> None:
        """Let go of the optimizers, and keep what was learned for the next time that they are met."""
        try:
            self._waiting = self.state_dict()
        finally:
            self._met.clear()

    def state_dict(self, together: Collectives | None = None) -> dict[str, Any]:
        """Return what was learned of each, by its index; of those that have not been met yet what was loaded for them.

        ``together`` are the processes, where all of them call this at the same point.
        """
        return {**self._waiting, **{str(track.index): state_of(track, together) for track in self}}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; optimizers are matched in the order in which they are met."""
        self._waiting = dict(states)
        for track in self:
            if str(track.index) in self._waiting:
                go_on_from(track, self._waiting.pop(str(track.index)))
