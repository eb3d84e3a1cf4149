"""Remedies: each does one thing about an explosion, and says what it did."""

from lightning_gradguard.remedies.backoff import LearningRateBackoff
from lightning_gradguard.remedies.clip import Clip
from lightning_gradguard.remedies.reinitialize import Reinitialize
from lightning_gradguard.remedies.remedy import Remedy, Scene
from lightning_gradguard.remedies.rollback import Rollback
from lightning_gradguard.remedies.skip import Skip

__all__ = ["Clip", "LearningRateBackoff", "Reinitialize", "Remedy", "Rollback", "Scene", "Skip"]
