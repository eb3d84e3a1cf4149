"""How large weights are, and how far one update moves them.

Measured once in many steps, so that it costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.arriving import Arriving
from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.records import FloatArray
from lightning_gradguard.statistics.norms import gradient_norms

SAMPLE = 256
"""Elements of each layer whose change is looked at.

Enough for the size of an update to some percent, and no copy of the weights.
"""


class WeightScale:
    """Measure the norm of each layer's weights, and the update-to-weight ratio of one update.

    Of a layer its largest parameter counts: biases start at zero and mean little. The norm is that of all elements; the
    update is the change of a sample of them between two looks, over the norm of the same sample before. On a device
    nothing is waited for until :meth:`take`.
    """

    def __init__(self) -> None:
        self._known: Mapping[str, nn.Parameter] | None = None
        self._place: dict[str, int] = {}
        self._starts = np.zeros(1, np.int64)
        self._views: list[Tensor] = []
        self._weights: list[Tensor] = []  # not detached, which would go on showing memory that they have left
        self._pointers: list[int] = []
        self._norms: Arriving | None = None
        self._before: Arriving | None = None
        self._after: Arriving | None = None
        self._off = False

    @property
    def arriving(self) -> list[Tensor]:
        """What is on its way to the host, or there."""
        return [one.values for one in (self._norms, self._before, self._after) if one is not None]

    @property
    def awaits_update(self) -> bool:
        """Whether the weights have been looked at before an update, and not yet after it."""
        return self._before is not None and self._after is None

    @torch.no_grad()
    def look(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Look at the weights before an update; at the next call, after it."""
        if self._off or self._after is not None:
            return
        try:
            if self._before is None:
                self._begin(parameters)
            elif [weight.data_ptr() for weight in self._weights] == self._pointers:
                self._after = Arriving(torch.cat(self._views))
            else:
                self._before = None
        except (RuntimeError, TypeError, NotImplementedError):
            self._off = True  # Weights on several devices, or whose memory is managed by others.

    def _begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._choose(parameters)
        if self._views:
            self._norms = Arriving(gradient_norms(self._weights))
            self._before = Arriving(torch.cat(self._views))

    def take(self, layers: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Return norms and update-to-weight ratios, and begin anew; NaN where nothing is known, or not yet."""
        if self._norms is None or self._before is None or self._after is None:
            return np.full(len(layers), math.nan), np.full(len(layers), math.nan)
        before, after = self._before.read(), self._after.read()
        with np.errstate(all="ignore"):
            moved, held = (np.sqrt(np.add.reduceat(x * x, self._starts)) for x in (after - before, before))
            found = np.stack([self._norms.read(), moved / held])
        self._norms = self._before = self._after = None
        told = np.column_stack([found, [math.nan, math.nan]])
        norms, ratios = told[:, [self._place.get(layer, -1) for layer in layers]]
        return norms, ratios

    def _choose(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Look up the largest parameter of each layer, again where others have come or their memory has moved."""
        if parameters is self._known and [weight.data_ptr() for weight in self._weights] == self._pointers:
            return
        largest: dict[str, nn.Parameter] = {}
        for name, parameter in parameters.items():
            owner = layer_of(name) or name
            if not is_lazy(parameter) and parameter.numel() > (largest[owner].numel() if owner in largest else 0):
                largest[owner] = parameter
        flat = {owner: _flat(p.detach()) for owner, p in largest.items() if p.is_floating_point() or p.is_complex()}
        found = {owner: (largest[owner], view) for owner, view in flat.items() if view is not None}
        self._known = None if any(map(is_lazy, parameters.values())) else parameters
        self._place = {owner: i for i, owner in enumerate(found)}
        self._weights = [weight for weight, _ in found.values()]
        self._pointers = [weight.data_ptr() for weight in self._weights]
        # An odd stride falls on all columns of a matrix whose width is even.
        self._views = [view[:: (len(view) // SAMPLE) | 1] for _, view in found.values()]
        self._starts = np.cumsum([0, *(len(view) for view in self._views[:-1])])


def _flat(weight: Tensor) -> Tensor | None:
    """Return a tensor's own memory as one row; None where that is not possible without a copy."""
    real = torch.view_as_real(weight) if weight.is_complex() else weight
    order = sorted(range(real.dim()), key=real.stride, reverse=True)
    row = real.permute(order).reshape(-1)
    return row if row.data_ptr() == real.data_ptr() and len(row) > 0 else None
