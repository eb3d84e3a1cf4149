"""When witnesses look and are heard: once a window, at its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import Window
from lightning_gradguard.step.run import Run
from lightning_gradguard.witnesses.witness import WitnessContext


def attend(run: Run) -> None:
    """Put hooks in place where the batch that comes next begins a window."""
    for track in run.tracks:
        if track.accumulator.steps == 0:
            track.witnesses.arm(run.module, track.parameters.values())
            _tell(run, track)


def witness(
    run: Run, track: OptimizerTrack, names: Sequence[str], grads: Sequence[Tensor], scale: Tensor | float
) -> None:
    """Let the witnesses look at a step, if it begins a window, or if hooks are in place."""
    first = track.accumulator.steps == 0
    if not (first or track.witnesses.armed):
        return
    # Of shards nothing is measured: to take a sample of them would be a collective.
    seen = ((), ()) if track.sharded else (names, grads)
    track.witnesses.look(WitnessContext(track.parameters, track.optimizer, *seen, scale), first=first)
    _tell(run, track)


def hear(run: Run, track: OptimizerTrack, window: Window) -> Window:
    """Return a window that has ended with what was seen in it."""
    told = track.witnesses.hear(window, calm=track.incident is None)
    _tell(run, track)
    return dataclasses.replace(window, witnessed=told) if told else window


def _tell(run: Run, track: OptimizerTrack) -> None:
    while track.witnesses.complaints:
        name, sentence = track.witnesses.complaints.pop()
        run.recorder.warn(f"witness {name}", sentence)
