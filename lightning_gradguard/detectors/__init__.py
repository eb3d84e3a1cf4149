"""Detectors: each reads the statistics of one step and names one form of trouble."""

from lightning_gradguard.detectors.bad_start import BadStart
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.detectors.drift import Drift
from lightning_gradguard.detectors.loss_spike import LossSpike
from lightning_gradguard.detectors.nonfinite import NonFinite
from lightning_gradguard.detectors.optimizer_state import OptimizerStateCorruption
from lightning_gradguard.detectors.overshoot import Overshoot
from lightning_gradguard.detectors.spike import Spike
from lightning_gradguard.detectors.vanishing import Vanishing

__all__ = [
    "BadStart",
    "Detector",
    "Drift",
    "LossSpike",
    "NonFinite",
    "OptimizerStateCorruption",
    "Overshoot",
    "Spike",
    "Vanishing",
]
