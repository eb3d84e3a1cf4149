"""Plain pieces of small runs: a module with a loss and an optimizer, shuffled batches, and scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loss = Callable[[Tensor, Tensor], Tensor]


class Plain(LightningModule):
    """A net, a loss and an optimizer, as in the first example of every tutorial.

    Args:
        net: The net.
        loss: Loss of the net's answer and the target.
        optimizer: Makes the optimizer of the parameters.
        schedule: Makes the learning-rate schedule, stepped after every batch.
        clip: Norm that the gradients are clipped to.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        schedule: Callable[[Any], Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizer, self.schedule, self.clip = optimizer, schedule, clip

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net."""
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return self.loss(self(x), y)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, if that is wanted."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def configure_optimizers(self) -> Any:
        """Make the optimizer and its schedule."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def shuffled(*tensors: Tensor, seed: int, size: int = 32) -> DataLoader[Any]:
    """Serve the rows of some tensors in batches, shuffled anew in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*tensors), size, shuffle=True, drop_last=True, generator=generator)


def dense(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Stack linear layers as PyTorch initialises them, with an activation between any two."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), act()]
    return nn.Sequential(*layers[:-1])


def fit(net: nn.Module, loss: Loss, x: Tensor, y: Tensor, steps: int = 150, lr: float = 3e-3) -> nn.Module:
    """Train a net in the old way, for runs that go on from a trained one."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        loss(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return net


def accuracy(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    """Score by the part of right answers; NaN is a wrong answer."""

    @torch.no_grad()
    def evaluate(module: nn.Module) -> float:
        module.eval()
        logits = module(x)
        return float(((logits.argmax(-1) == y) & logits.isfinite().all(-1)).float().mean())

    return evaluate


def explained(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    """Score by the explained part of the variance, not below 0; NaN scores 0."""

    @torch.no_grad()
    def evaluate(module: nn.Module) -> float:
        module.eval()
        score = 1 - float((module(x) - y).double().square().mean() / y.double().var(0, correction=0).mean())
        return score if score > 0 else 0.0

    return evaluate
