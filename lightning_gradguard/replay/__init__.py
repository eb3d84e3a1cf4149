"""Computing a bad step again from its bundle: data, weights, or not reproducible; which operation, at which line, of which sample."""

from lightning_gradguard.replay.answer import Answer
from lightning_gradguard.replay.diagnosis import replay
from lightning_gradguard.replay.rebuild import ReplayError

__all__ = ["Answer", "ReplayError", "replay"]
