"""Detectors: each reads the statistics of one step and names one form of trouble."""

from lightning_gradguard.detectors.cold_start import ColdStart
from lightning_gradguard.detectors.detector import Detector
from lightning_gradguard.detectors.divergence import Divergence
from lightning_gradguard.detectors.drift import Drift
from lightning_gradguard.detectors.loss_leap import LossLeap
from lightning_gradguard.detectors.nonfinite import NonFinite
from lightning_gradguard.detectors.rate_leap import RateLeap
from lightning_gradguard.detectors.rate_rise import RateRise
from lightning_gradguard.detectors.spike import Spike
from lightning_gradguard.detectors.spoilt_state import SpoiltState
from lightning_gradguard.detectors.stagnation import Stagnation
from lightning_gradguard.detectors.update_leap import UpdateLeap
from lightning_gradguard.detectors.vanishing import Vanishing

__all__ = [
    "ColdStart",
    "Detector",
    "Divergence",
    "Drift",
    "LossLeap",
    "NonFinite",
    "RateLeap",
    "RateRise",
    "Spike",
    "SpoiltState",
    "Stagnation",
    "UpdateLeap",
    "Vanishing",
]
