"""What is looked up before a step is measured, since it may have changed since the last one."""

from __future__ import annotations

from torch import Tensor

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.step.copying import make_up
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.replicas import compare
from lightning_gradguard.step.run import Run


def prepare(run: Run, track: OptimizerTrack, inputs: StepInputs) -> None:
    """Look up the step's number, the parameters, who has written to the optimizer's state, and the order of layers.

    Also copy the state where a checkpoint did not hold what there was to go back to, and compare replicas where asked.
    """
    loss = inputs.loss
    track.number = track.steps if inputs.step is None else inputs.step
    if run.evidence is not None:
        run.evidence.hand.step(loss)
    if track.trained.changed():
        track.take_over()
    track.watch.look(track.steps, alone=run.collectives.size == 1)
    if track.order.to_follow and isinstance(loss, Tensor) and loss.grad_fn is not None:
        track.follow(loss)
    make_up(run, track)
    if run.replicas_every is not None:
        compare(run, track)
