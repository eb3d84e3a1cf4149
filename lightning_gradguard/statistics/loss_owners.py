"""Which optimizers the loss of a backward pass belongs to: of several to all, or that is not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradguard.layers.forward_order import first_uses


class LossOwners:
    """Sum the loss over the backward passes before a step, and hand it to the optimizers that it is the loss of.

    Several optimizers share a loss where its graph reaches parameters of each and all of them step by it before the
    next backward pass, as Muon does with the AdamW beside it. Losses that are stepped by one after the other may be one
    another's adversaries: a GAN's generator loss rises in health, so nothing must be judged by it.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._stepped = set[int]()
        # Whether several optimizers share their loss; None before it was asked.
        self._shared: bool | None = None

    def backward(self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Take in the loss of a backward pass that is about to be made.

        Args:
            loss: The loss, with its graph.
            optimizers: All optimizers of the run.

        Returns:
            Whether a loss that was handed out has turned out not to be shared.
        """
        parted = bool(self._shared) and 0 < len(self._stepped) < len(optimizers)
        if len(optimizers) > 1 and self._shared is None:
            self._shared = reaches_all(loss, optimizers)
        elif parted:
            self._shared = False
        begins = bool(self._stepped) or self._loss is None
        self._loss = loss.detach() if begins or self._loss is None else self._loss + loss.detach()
        self._stepped.clear()
        return parted

    def of(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Return the loss that an optimizer is about to step by, 0-d on its device; None where that is not known."""
        known = self._shared is not False and id(optimizer) not in self._stepped
        self._stepped.add(id(optimizer))
        return self._loss if known else None

    def drop(self) -> None:
        """Forget the loss at hand."""
        self._loss = None
        self._stepped.clear()


def reaches_all(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Return whether the graph of a loss holds parameters of each of the optimizers."""
    uses = first_uses(loss)
    return all(any(id(p) in uses for group in o.param_groups for p in group["params"]) for o in optimizers)
