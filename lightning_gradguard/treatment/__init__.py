"""Treatment: what is known of the trouble at hand, and of what was tried against it. It changes nothing in the run."""

from lightning_gradguard.treatment.signal_watch import LIFE, SignalWatch
from lightning_gradguard.treatment.treatment import Treatment

__all__ = ["LIFE", "SignalWatch", "Treatment"]
