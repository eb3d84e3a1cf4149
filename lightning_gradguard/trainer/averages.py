"""Averages of the weights that other callbacks keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def averages_of(trainer: Trainer) -> tuple[nn.Module, ...]:
    """Return the averages that WeightAveraging and StochasticWeightAveraging keep to themselves."""
    found = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return tuple(average for average in found if isinstance(average, nn.Module))
