"""Who is to blame: gains, measured by a probe on suspicion, and weights against their history and their fan."""

from typing import TYPE_CHECKING, Any

from lightning_gradguard.attribution.probe import Probe
from lightning_gradguard.attribution.reading import LayerReading
from lightning_gradguard.layers.fan import expected_rms
from lightning_gradguard.layers.names import layer_of

if TYPE_CHECKING:
    from lightning_gradguard.attribution.suspects import blame

__all__ = ["LayerReading", "Probe", "blame", "expected_rms", "layer_of"]


def __getattr__(name: str) -> Any:
    # Importing it takes a while, and a run that stays healthy blames nobody.
    if name != "blame":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_gradguard.attribution.suspects import blame

    return blame
