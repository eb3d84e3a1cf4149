"""A run as the guard meets it: how much of it is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import GradGuard
from lightning_gradguard.trainer.run import remaining

BATCHES = 8


class Noted(torch.optim.SGD):
    """Note the rate that each update is made with."""

    rates: list[float]

    def step(self, closure: Any = None) -> Any:
        def noted() -> Any:
            loss = closure()  # In which the guard looks at the gradients, and lowers the rate.
            self.rates = [*getattr(self, "rates", []), self.param_groups[0]["lr"]]
            return loss

        return super().step(noted)


class Line(LightningModule):
    """A linear model."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.net, self.rate = nn.Linear(4, 1), rate

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Noted(self.parameters(), lr=self.rate)


class Asks(Callback):
    """Ask at each batch which share is left."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizer = trainer.optimizers[0]

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.left.append(remaining(trainer))


def train(where: Path, *callbacks: Callback, rate: float = 0.1, **lengths: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(4 * BATCHES, 4)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    Trainer(
        default_root_dir=where,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **lengths,
    ).fit(Line(rate), data)


@pytest.mark.parametrize(
    ("lengths", "updates"),
    [({"max_epochs": 2}, 16), ({"max_steps": 20}, 20), ({"max_epochs": 5, "max_steps": 10}, 10)],
)
def test_what_is_left_falls_from_all_of_the_run_to_one_update(
    tmp_path: Path, lengths: dict[str, int], updates: int
) -> None:
    asks = Asks()
    train(tmp_path, asks, **lengths)
    assert asks.left == pytest.approx([1.0 - step / updates for step in range(updates)])


def test_of_a_run_without_an_end_all_is_left(tmp_path: Path) -> None:
    class Ends(Asks):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = len(self.left) >= 2 * BATCHES

    asks = Ends()
    train(tmp_path, asks, max_epochs=-1)
    assert set(asks.left) == {1.0}


def test_a_rate_that_is_held_down_ends_in_a_cool_down_and_one_that_is_not_stays(tmp_path: Path) -> None:
    lost, fine = Asks(), Asks()
    train(tmp_path, GradGuard(journal=False), lost, rate=30.0, max_steps=200)
    train(tmp_path, GradGuard(journal=False), fine, rate=0.03, max_steps=200)
    assert set(fine.optimizer.rates) == {0.03}
    rates = lost.optimizer.rates
    assert 0.0 < rates[-1] < 0.1 * rates[-40], "the last of forty updates, over which it falls"
