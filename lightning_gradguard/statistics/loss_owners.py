"""Which optimizers the loss of a backward pass belongs to: of several to each its own, to all, or that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from lightning_gradguard.layers.forward_order import first_uses


class Owners(Enum):
    """How the losses of several optimizers belong to them."""

    EACH = "each its own"
    """No loss reaches parameters of another optimizer, as those of an actor and a critic."""
    ALL = "shared"
    """One loss reaches parameters of all, which step by it before the next one, as Muon does with the AdamW beside."""
    UNKNOWN = "unknown"
    """Losses that reach another's parameters may be one another's adversaries: that of a generator rises in health."""


class LossOwners:
    """Sum the loss over the backward passes before a step, and hand it to the optimizers that it is the loss of.

    Whose it is, is told by its graph, which is walked until every optimizer has stepped once. What turns out to be
    otherwise later on was handed out in error, and the caller is told so.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._owners: Owners | None = None
        # Whose parameters the loss at hand reaches, where each has its own; who has stepped by it; who has ever.
        self._reached: int | None = None
        self._stepped = set[int]()
        self._seen = set[int]()

    def backward(self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Take in the loss of a backward pass that is about to be made.

        Args:
            loss: The loss, with its graph.
            optimizers: All optimizers of the run.

        Returns:
            Whether a loss that was handed out has turned out not to be that of who took it.
        """
        begins = bool(self._stepped) or self._loss is None
        parted = False
        if len(optimizers) > 1 and self._owners is not Owners.UNKNOWN:
            known = self._owners is not None
            self._owners = self._told(loss, optimizers, begins=begins)
            parted = known and self._owners is Owners.UNKNOWN
        self._loss = loss.detach() if begins or self._loss is None else self._loss + loss.detach()
        self._stepped.clear()
        return parted

    def _told(self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], *, begins: bool) -> Owners:
        """Return what this loss, and those before it, tell of whose they are."""
        if self._owners is Owners.ALL:
            return Owners.UNKNOWN if 0 < len(self._stepped) < len(optimizers) else Owners.ALL
        if self._owners is Owners.EACH and len(self._seen) == len(optimizers):
            return Owners.EACH  # The mapping was learned.
        reached = owners_of(loss, optimizers)
        if self._owners is None and len(reached) == len(optimizers):
            return Owners.ALL
        # One that is frozen for this pass cannot be told from one that is not reached.
        frozen = any(not p.requires_grad for o in optimizers for group in o.param_groups for p in group["params"])
        another = not begins and reached != [self._reached]
        if len(reached) != 1 or frozen or another:
            return Owners.UNKNOWN
        self._reached = reached[0]
        return Owners.EACH

    def of(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Return the loss that an optimizer is about to step by, 0-d on its device; None where that is not known."""
        known = self._owners is not Owners.UNKNOWN and id(optimizer) not in self._stepped
        if self._owners is Owners.EACH:
            learned = id(optimizer) in self._seen
            known = known and not self._stepped and (learned or self._reached == id(optimizer))
            self._seen.add(id(optimizer))
        self._stepped.add(id(optimizer))
        return self._loss if known else None

    def drop(self) -> None:
        """Forget the loss at hand."""
        self._loss = None
        self._stepped.clear()


def owners_of(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> list[int]:
    """Return the optimizers, by ``id``, whose parameters the graph of a loss holds."""
    uses = first_uses(loss)
    return [id(o) for o in optimizers if any(id(p) in uses for group in o.param_groups for p in group["params"])]
