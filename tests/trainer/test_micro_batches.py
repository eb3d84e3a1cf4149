"""Losses of micro-batches until their step."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradguard.trainer.micro_batches import MicroBatches

LAYER = nn.Linear(1, 1)
OPTIMIZER = torch.optim.SGD(LAYER.parameters(), lr=0.1)


def test_losses_are_summed_until_the_step_and_then_begin_anew() -> None:
    inputs = MicroBatches()
    assert inputs.take_loss(OPTIMIZER, None) is None
    for value in (1.0, 2.0):
        assert not inputs.add_loss(torch.tensor(value), [OPTIMIZER])
    assert inputs.take_loss(OPTIMIZER, None) == 3.0
    inputs.add_loss(torch.tensor(5.0), [OPTIMIZER])
    assert inputs.take_loss(OPTIMIZER, torch.amp.GradScaler("cpu", enabled=False)) == 5.0


def test_the_scale_of_a_gradscaler_is_taken_out() -> None:
    inputs, scaler = MicroBatches(), torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs.add_loss(scaler.scale(torch.tensor(3.0)), [OPTIMIZER])
    assert inputs.take_loss(OPTIMIZER, scaler) == 3.0


def test_nothing_is_kept_of_a_run_that_is_over() -> None:
    inputs = MicroBatches()
    inputs.batch = torch.zeros(1)
    inputs.add_loss(torch.tensor(1.0), [OPTIMIZER])
    inputs.forget()
    assert inputs.batch is None and inputs.take_loss(OPTIMIZER, None) is None
