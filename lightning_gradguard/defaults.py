"""The detectors and remedies of a guard that is given none."""

from __future__ import annotations

from lightning_gradguard.detectors import (
    BadStart,
    Detector,
    Drift,
    LossSpike,
    NonFinite,
    OptimizerStateCorruption,
    Overshoot,
    Spike,
    Vanishing,
)
from lightning_gradguard.remedies import (
    ClearGradients,
    Clip,
    Initialize,
    LearningRateBackoff,
    Reinitialize,
    Remedy,
    Rollback,
    Skip,
    TuneOptimizer,
)


def default_detectors() -> list[Detector]:
    """Return one detector for each form of trouble, in the order in which they are asked."""
    return [
        BadStart(),
        OptimizerStateCorruption(),
        NonFinite(),
        Spike(),
        Overshoot(),
        LossSpike(),
        Drift(),
        Vanishing(),
    ]


def default_remedies() -> list[Remedy]:
    """Return the remedies of the default ladder."""
    lasting = [Rollback(), Reinitialize(), Initialize(), LearningRateBackoff(), ClearGradients(), TuneOptimizer()]
    return [Clip(), Skip(), *lasting]
