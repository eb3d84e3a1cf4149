"""A small training under a guard, whose stages are called one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics, Suspect, Verdict
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.step import Run, StepInputs, StepReport
from lightning_gradguard.step.measuring import measured
from tests.builders import mlp, regression


class Loop:
    """Train a healthy network for a number of steps."""

    def __init__(self, steps: int = 60, **options: Any) -> None:
        self.network = mlp(norm=True)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.guard = Guard(self.network, **options)
        self.track: OptimizerTrack = self.guard.attach(self.optimizer)
        self.run: Run = self.guard._run
        self.batches = iter(regression(steps + 100))
        for _ in range(steps):
            self.step()

    def backward(self, by: float = 1.0) -> Tensor:
        """Leave the gradients of the next batch, ``by`` times what they are, and return its loss."""
        x, y = next(self.batches)
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.network(x), y)
        (loss * by).backward()
        return loss

    def step(self, by: float = 1.0) -> StepReport:
        """Make a whole step."""
        report = self.guard.before_step(self.optimizer, loss=self.backward(by))
        self.optimizer.step()
        self.guard.after_step()
        return report

    def measured(self, by: float = 1.0) -> RemedyContext:
        """Measure the gradients of the next batch."""
        loss = self.backward(by)
        self.track.begin()
        return measured(self.run, self.track, StepInputs(loss))


def alarm(found: GradientStatistics, form: Any = "sudden", limit: float = 1.0, **more: Any) -> Verdict:
    """Return an alarm about these gradients."""
    return Verdict(form, "test", found.norm, limit, "for a test", **more)


BATCH = Suspect("batch", 9.0, "for a test")
