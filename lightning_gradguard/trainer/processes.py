"""The processes of a Trainer, by the collectives of its strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_gradguard.statistics.collectives import Collectives

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy


def collectives_of(trainer: Trainer) -> Collectives:
    """Return the collectives of the processes that train together."""
    strategy, size = trainer.strategy, trainer.world_size
    return Collectives(
        size,
        mean=lambda values: _mean(strategy, values),
        gather=lambda value: [strategy.broadcast(value, src=rank) for rank in range(size)],
        neighbours=trainer.num_devices,
        rank=trainer.global_rank,
    )


def _mean(strategy: Strategy, values: list[float]) -> list[float]:
    reduced = strategy.reduce(torch.tensor(values, dtype=torch.float32, device=strategy.root_device))
    assert isinstance(reduced, Tensor)
    means: list[float] = reduced.tolist()
    return means
