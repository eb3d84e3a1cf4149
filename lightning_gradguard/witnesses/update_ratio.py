"""How far one update moves the weights, for an optimizer of any kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.records import Window
from lightning_gradguard.witnesses.witness import Witness, WitnessContext


class UpdateRatio(Witness):
    """Read the update-to-weight ratio of each layer that has a matrix, which the window has measured anyway.

    The largest over the layers is the scalar: one layer that departs is lost in the median of a hundred. Biases and
    gains do not count, since they begin at zero or one and may be moved by many times their size in health.
    """

    name: ClassVar[str] = "update_ratio"
    beyond: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._known: Mapping[str, nn.Parameter] | None = None
        self._matrices: frozenset[str] = frozenset()

    def look(self, scene: WitnessContext) -> None:
        """Look up which layers have a matrix or a kernel, again where others have come."""
        if scene.parameters is not self._known:
            self._known = scene.parameters
            held = (name for name, p in scene.parameters.items() if not is_lazy(p) and p.dim() > 1)
            self._matrices = frozenset(layer_of(name) or name for name in held)

    def take(self, window: Window) -> dict[str, float]:
        """Return ``||update|| / ||weight||`` of each such layer; a layer whose weights were all zero has none."""
        told = zip(window.layers, window.layer_updates.tolist(), strict=len(window.layer_updates) > 0)
        return {layer: ratio for layer, ratio in told if layer in self._matrices and math.isfinite(ratio)}
