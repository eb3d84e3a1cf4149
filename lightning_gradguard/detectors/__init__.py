"""Detectors: each reads the statistics of one step and names one form of trouble."""

from lightning_gradguard.detectors.bad_start import ColdStart
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.detectors.drift import Drift
from lightning_gradguard.detectors.loss_spike import LossLeap
from lightning_gradguard.detectors.nonfinite import NonFinite
from lightning_gradguard.detectors.optimizer_state import SpoiltState
from lightning_gradguard.detectors.overshoot import Overshoot
from lightning_gradguard.detectors.spike import Spike
from lightning_gradguard.detectors.vanishing import Vanishing

__all__ = [
    "ColdStart",
    "Detector",
    "Drift",
    "LossLeap",
    "NonFinite",
    "Overshoot",
    "Spike",
    "SpoiltState",
    "Vanishing",
]
