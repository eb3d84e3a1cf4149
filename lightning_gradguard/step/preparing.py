"""What is looked up before a step is measured, since it may have changed since the last one."""

from __future__ import annotations

from torch import Tensor

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.step.run import Run


def prepare(run: Run, track: OptimizerTrack, loss: Tensor | float | None) -> None:
    """Look up the parameters, who has written to the optimizer's state, and the order of the layers in the loss's graph."""
    if run.evidence is not None:
        run.evidence.hand.step(loss)
    if track.trained.changed():
        track.take_over()
    track.watch.look(track.steps, alone=run.collectives.size == 1)
    if track.order.to_follow and isinstance(loss, Tensor) and loss.grad_fn is not None:
        track.follow(loss)
