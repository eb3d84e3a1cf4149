"""Remedies: each does one thing about an explosion, and says what it did."""

from lightning_gradguard.remedies.augment import Augment
from lightning_gradguard.remedies.backoff import LearningRateBackoff
from lightning_gradguard.remedies.clear_gradients import ClearGradients
from lightning_gradguard.remedies.clip import Clip
from lightning_gradguard.remedies.initialize import Initialize
from lightning_gradguard.remedies.regularize import Regularize
from lightning_gradguard.remedies.reinitialize import Reinitialize
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.remedies.rollback import Rollback
from lightning_gradguard.remedies.skip import Skip
from lightning_gradguard.remedies.swap_activation import SwapActivation, restore_activations
from lightning_gradguard.remedies.tune import TuneOptimizer

__all__ = [
    "Augment",
    "ClearGradients",
    "Clip",
    "Initialize",
    "LearningRateBackoff",
    "Regularize",
    "Reinitialize",
    "Remedy",
    "RemedyContext",
    "Rollback",
    "Skip",
    "SwapActivation",
    "TuneOptimizer",
    "restore_activations",
]
