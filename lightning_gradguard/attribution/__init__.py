"""Who is to blame: gains measured by a probe that is armed on suspicion, and weights against their history and their fan."""

from lightning_gradguard.attribution.probe import LayerReading, Probe
from lightning_gradguard.attribution.suspects import blame
from lightning_gradguard.fans import expected_rms
from lightning_gradguard.layers import layer_of

__all__ = ["LayerReading", "Probe", "blame", "expected_rms", "layer_of"]
