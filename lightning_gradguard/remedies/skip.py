"""Skip the step, so truly that parameters, optimizer state and running statistics stay bit-identical."""

from __future__ import annotations

from typing import ClassVar

from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, Scene


class Skip(Remedy):
    """Hold one step: the optimizer finds no gradient and touches nothing.

    Gradients are set to None, since with zeros (or a rate of zero) momentum, weight decay and Adam's moments would
    still move. Running statistics of normalisation layers are put back to what they were before the batch.
    """

    name: ClassVar[str] = "skip"

    def apply(self, scene: Scene) -> Outcome:
        """Take the gradients away and put the running statistics back."""
        if scene.scaler is not None and getattr(scene.optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer's gradients are unscaled inside its kernel; without this the scaler finds none
            # and raises "No inf checks were recorded", at a scale of 1 as at any other.
            scene.scaler.unscale_(scene.optimizer)
        for parameter in scene.parameters.values():
            parameter.grad = None
        scene.running.restore()
        return Outcome(self.name, True, "held the step: nothing was updated", (), 0.0)
