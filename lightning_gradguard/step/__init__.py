"""One step as the host judges it: gradients -> statistics -> verdict -> decision -> remedy -> record."""

from lightning_gradguard.records import StepReport
from lightning_gradguard.step.inputs import StepInputs
from lightning_gradguard.step.river import Step
from lightning_gradguard.step.run import Run

__all__ = ["Run", "Step", "StepInputs", "StepReport"]
