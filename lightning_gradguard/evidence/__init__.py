"""Evidence of a bad step: what it was computed from, kept in a bundle, and what its trouble means for checkpoints."""

from lightning_gradguard.evidence.bundle import Bundle, BundleError, Pass, read_bundle
from lightning_gradguard.evidence.settings import Evidence

__all__ = ["Bundle", "BundleError", "Evidence", "Pass", "read_bundle"]
