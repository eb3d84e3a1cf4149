"""The walk to the operation in which a number broke, and where it came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.replay.operation import seen
from lightning_gradguard.replay.origin import origin
from lightning_gradguard.replay.walk import Walk

LINES = Path(__file__).read_text().splitlines()


def line_of(text: str) -> int:
    [found] = [number for number, line in enumerate(LINES, 1) if text in line and "line_of" not in line]
    return found


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.fc(x)
        masked = scores.masked_fill(torch.tensor([True, False]), -math.inf)
        return masked.softmax(-1).log().sum()  # here log(0) is made


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).abs().sqrt().sum()  # its gradient is inf at 0


class Deep(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        with torch.no_grad():
            self.second.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x)  # the second layer
        return x.square().mean()


def walked(module: nn.Module, x: Tensor) -> list[Any]:
    with Walk(module) as walk:
        module(x).backward()
    return walk.operations


def test_the_operation_that_made_an_inf_is_found_with_its_line_and_a_mask_is_let_be() -> None:
    found = origin(walked(Classifier(), torch.ones(2, 3)))
    assert found is not None and found.name == "aten.log" and found.phase == "forward" and found.made == "inf"
    assert found.site.line == line_of("here log(0) is made") and found.site.file == __file__
    assert found.inputs[0].low == 0.0 and found.output.inf == 2


def test_what_is_born_in_the_backward_pass_is_led_back_to_the_line_of_the_forward_pass() -> None:
    found = origin(walked(Rooted(), torch.tensor([1.0, 0.0, 2.0])))
    assert found is not None and found.phase == "backward" and found.made == "inf"
    assert found.site.line == line_of("its gradient is inf at 0")


def test_a_leap_is_found_where_magnitudes_grow_most() -> None:
    found = origin(walked(Deep(1e6), torch.ones(2, 3)))
    assert found is not None and found.name == "aten.addmm" and found.site.module == "second"
    assert found.site.line == line_of("the second layer")
    assert {one.name for one in found.inputs} == {"second.weight", "second.bias", ""}


def test_a_leap_is_found_against_a_step_that_was_fine() -> None:
    module = Deep(1.0)
    fine, bad = walked(module, torch.ones(2, 3)), walked(module, torch.full((2, 3), 1e6))
    found = origin(bad, fine)
    assert found is not None and found.site.module == "first"
    assert origin(fine, fine) is None


def test_what_came_in_with_the_batch_was_made_by_no_operation() -> None:
    assert origin(walked(Deep(1.0), torch.tensor([[1.0, math.nan, 0.0]]))) is None


def test_a_walk_leaves_no_hooks() -> None:
    module = Deep(1.0)
    walked(module, torch.ones(1, 3))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_a_tensor_without_a_finite_number_is_not_said_to_have_a_range() -> None:
    assert str(seen(torch.tensor([math.nan, math.inf]))) == "tensor [2] float32: nothing finite, 1 NaN, 1 inf"
    assert str(seen(torch.tensor([2.0, math.inf]))) == "tensor [2] float32: 2 .. 2, 1 inf"
    assert str(seen(torch.zeros(0))) == "tensor [0] float32: 0 .. 0"


class Dropping(nn.Module):
    """Draws masks of three kinds into memory that nobody has set."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.empty_like(x).bernoulli_(0.5)
        noise = torch.mul(torch.empty_like(x).normal_(), torch.empty_like(x).uniform_(), out=torch.empty_like(x))
        return (nn.functional.dropout(x, 0.5) * mask + noise).square().mean()


def test_memory_that_nobody_has_set_is_not_taken_for_a_number() -> None:
    torch.use_deterministic_algorithms(True)  # It sets such memory to NaN.
    try:
        operations = walked(Dropping(), torch.ones(4, 3, requires_grad=True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert {"aten.bernoulli_.float", "aten.normal_", "aten.mul.out"} <= {one.name for one in operations}
    assert not [one for one in operations if any(seen.nan or seen.inf for seen in (*one.inputs, one.output))]
    assert all(one.gain < 100.0 for one in operations)
