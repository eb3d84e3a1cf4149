"""Single weights that stand out of their layer as no training makes them: a flipped bit leaves such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lightning_gradguard.layers.names import clean

STRAY = 1e4
"""Times the median of its parameter's absolute values."""


@dataclass(frozen=True, slots=True)
class Stray:
    """One weight.

    Args:
        name: Its parameter.
        index: Where in it.
        value: Its value.
        times: How many times the median absolute value of the parameter it is.
    """

    name: str
    index: tuple[int, ...]
    value: float
    times: float

    def __str__(self) -> str:
        """Return it in a line."""
        place = ", ".join(map(str, self.index))
        return f"{self.name}[{place}] = {self.value:.4g}, {self.times:.3g} x the median of its parameter"


@contextmanager
def without(module: nn.Module, one: Stray) -> Iterator[None]:
    """Compute as if a weight were 0."""
    live = {clean(name): parameter for name, parameter in module.named_parameters()}[one.name].data
    before = live[one.index].clone()
    live[one.index] = 0.0
    try:
        yield
    finally:
        live[one.index] = before


@torch.no_grad()
def stray(module: nn.Module) -> Stray | None:
    """Return the weight that stands out most, or None where none does."""
    found: list[Stray] = []
    for name, parameter in module.named_parameters():
        if parameter.numel() < 2 or not parameter.is_floating_point():
            continue
        size = parameter.detach().double().abs()
        worst = int(size.nan_to_num(nan=torch.inf).argmax())
        value, median = float(size.flatten()[worst]), float(size.nanmedian())
        times = value / median if median > 0.0 else 1.0
        if not times < STRAY:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), parameter.shape))
            found.append(Stray(clean(name), index, float(parameter.flatten()[worst]), times))
    return max(found, key=lambda one: (one.times != one.times, one.times), default=None)
