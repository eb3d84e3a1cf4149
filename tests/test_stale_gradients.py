"""Gradients that nobody clears are told from those that are meant to be added up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.diagnostics import Console
from lightning_gradguard.stale_gradients import LOOKS, StaleGradients


class Loop:
    """A layer whose optimizer steps, as the guard hears of it."""

    def __init__(self) -> None:
        self.layer, self.stale, self.seen = nn.Linear(2, 1), StaleGradients(), [False]

    def backward(self) -> None:
        self.seen.append(self.stale.before_backward(self.layer.parameters()))
        self.layer(torch.ones(1, 2)).sum().backward()

    def step(self) -> None:
        self.stale.after_update()


def zeros(layer: nn.Linear) -> None:
    layer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("clear", [nn.Linear.zero_grad, zeros])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_cleared_ones_are_not_stale(clear: Callable[[nn.Linear], None], micro_batches: int) -> None:
    loop = Loop()
    for _ in range(LOOKS):
        clear(loop.layer)
        for _ in range(micro_batches):
            loop.backward()
        loop.step()
    assert not any(loop.seen) and not loop.stale.piled_up


def test_those_that_are_left_twice_are() -> None:
    loop = Loop()
    for index in range(4):
        loop.backward()
        loop.step()
        assert loop.stale.piled_up is (index >= 2)


def test_one_time_is_an_oversight() -> None:
    loop = Loop()
    for index in range(LOOKS):
        if index != 3:
            loop.layer.zero_grad()
        loop.backward()
        loop.step()
    assert not loop.stale.piled_up


def test_another_optimizers_backward_pass_may_come_before_they_are_cleared() -> None:
    loop = Loop()
    for _ in range(LOOKS):
        loop.backward()  # a generator's, which reaches the discriminator as well
        loop.layer.zero_grad()
        loop.backward()
        loop.step()
    assert any(loop.seen) and not loop.stale.piled_up


def test_after_a_few_steps_nobody_looks_any_more() -> None:
    loop = Loop()
    for _ in range(LOOKS + 5):
        loop.layer.zero_grad()
        loop.backward()
        loop.step()
    loop.layer.weight.grad = nn.Parameter(torch.full((1, 2), 9.0))
    assert not loop.stale.before_backward(loop.layer.parameters())


def test_what_is_cleared_here_is_still_left_by_the_loop() -> None:
    loop = Loop()
    for _ in range(LOOKS + 5):
        if loop.stale.before_backward(loop.layer.parameters()):
            loop.layer.zero_grad()
            loop.stale.cleared(done=True)
        loop.layer(torch.ones(1, 2)).sum().backward()
        loop.step()
        assert float(loop.layer.weight.grad.abs().max()) == 1.0  # type: ignore[union-attr]
    assert not loop.stale.piled_up, "it is being treated"
    assert loop.stale.before_backward(loop.layer.parameters())
    loop.stale.cleared(done=False)
    assert loop.stale.piled_up


def test_a_loop_that_clears_nothing_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    guard = Guard(layer, sinks=[Console()])

    def run() -> None:
        for _ in range(LOOKS):
            loss = layer(torch.ones(1, 2)).sum()
            guard.before_backward()
            loss.backward()
            guard.before_step(optimizer, loss=loss)
            optimizer.step()

    caplog.set_level("INFO")
    with pytest.warns(RuntimeWarning, match="call zero_grad"):
        run()
    assert sum("call zero_grad" in message for message in caplog.messages) == 1
