"""Ending a run at its first bad step, before the weights are touched: ``mode="halt"``."""

from __future__ import annotations

import dataclasses

from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Decision
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.step.run import Run


def halts(run: Run, decision: Decision) -> bool:
    """Return whether the run ends here: where a guard that acts would hold this step or treat the run, and not where it would clip."""
    return run.halts and bool(set(decision.remedies) - {Act.CLIP.value})


def halted(context: RemedyContext, decision: Decision) -> Decision:
    """Leave no trace of the step, and return the decision that ends the run."""
    # The forward pass has gone into running statistics; what is saved on the way out must not hold it.
    context.running.restore()
    return dataclasses.replace(
        decision, remedies=(), reason="mode='halt' ends the run at its first bad step", exhausted=True
    )
