"""A sick run that learns from rewards, and one that never clears its gradients."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, dense, shuffled
from benchmarks.zoo.data import breast_cancer, digits


class Bandit(LightningModule):
    """A policy that sees an image, draws one of five actions, and gets a reward for the right one."""

    def __init__(self, lr: float, reward: float) -> None:
        super().__init__()
        self.net, self.lr, self.reward = dense(64, 48, 5, act=nn.Tanh), lr, reward

    def forward(self, x: Tensor) -> Tensor:
        """Give a score for every action."""
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Weight the log-probability of drawn actions by their rewards (REINFORCE)."""
        x, y = batch
        log = self(x).log_softmax(1)
        action = (log.detach() - torch.empty_like(log).exponential_().log()).argmax(1)
        reward = self.reward * ((action == y).float() - 0.2)
        return -(reward * log.gather(1, action[:, None])[:, 0]).mean()

    def configure_optimizers(self) -> Any:
        """Make SGD with momentum."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


@case(
    kind="sick",
    what="REINFORCE with rewards of a thousand points, neither divided nor centred, at an ordinary rate",
    correction="a lower learning rate",
    steps=500,
    chance=0.2,
)
def rewards_of_a_thousand_points(seed: int, variant: Variant) -> Task:
    """REINFORCE with rewards of a thousand points, neither divided nor centred, at an ordinary rate."""
    d = digits()
    few, few_test = d.y < 5, d.y_test < 5
    module = Bandit(1e-4 if variant == "corrected" else 0.1, 1.0 if variant == "twin" else 1000.0)
    return Task(
        module, shuffled(d.x[few], d.y[few], seed=seed, size=64), accuracy(d.x_test[few_test], d.y_test[few_test])
    )


class Forgetful(Plain):
    """A net that is stepped by hand, by an author who may forget to clear the gradients."""

    clears = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Step by hand."""
        optimizer = self.optimizers()
        if self.clears:
            optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()  # type: ignore[union-attr]


@case(
    kind="sick",
    what="manual optimization in which nobody clears the gradients",
    correction="gradients clipped, in place, to a norm of 0.3",
    steps=300,
    chance=0.5,
)
def gradients_never_cleared(seed: int, variant: Variant) -> Task:
    """Manual optimization in which nobody clears the gradients."""
    c = breast_cancer()
    module = Forgetful(
        dense(30, 32, 32, 32, 2),
        cross_entropy,
        lambda p: torch.optim.SGD(p, 0.1),
        clip=0.3 if variant == "corrected" else None,
    )
    module.clears = variant == "twin"
    return Task(module, shuffled(c.x, c.y, seed=seed), accuracy(c.x_test, c.y_test))
