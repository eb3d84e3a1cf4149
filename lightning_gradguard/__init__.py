"""Keep deep-learning training alive: gradients -> statistics -> verdict -> decision -> remedy -> record.

``Trainer(callbacks=[GradGuard()])`` is all that a Lightning user needs; :class:`Guard` is the same flow in pure torch.
"""

from typing import TYPE_CHECKING, Any

from lightning_gradguard.callback import GradGuard
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.errors import GuardError, TrainingDiverged
from lightning_gradguard.guard import Guard
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Incident
from lightning_gradguard.snapshots import SnapshotStore
from lightning_gradguard.step import StepReport

__all__ = [
    "GradGuard",
    "Guard",
    "GuardError",
    "Incident",
    "Policy",
    "SnapshotStore",
    "StepReport",
    "TrainingDiverged",
    "default_detectors",
    "default_remedies",
    "show",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_gradguard.report import show


def __getattr__(name: str) -> Any:
    """Load what draws a report only for who asks for one: training never does."""
    if name == "show":
        from lightning_gradguard.report import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
