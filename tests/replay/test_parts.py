"""The parts of a replay: samples by halving, the walk to an operation, strays, rebuilding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.evidence import Bundle, Pass
from lightning_gradguard.replay import ReplayError, samples
from lightning_gradguard.replay.attempt import Stage
from lightning_gradguard.replay.origin import origin
from lightning_gradguard.replay.rebuild import build, named
from lightning_gradguard.replay.walk import Walk
from lightning_gradguard.replay.weights import stray
from tests.builders import mlp, regression

LINES = Path(__file__).read_text().splitlines()


def line_of(text: str) -> int:
    [found] = [number for number, line in enumerate(LINES, 1) if text in line and "line_of" not in line]
    return found


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(0,), (7,), (2, 5), (0, 1, 6), ()])
def test_guilty_samples_are_found_one_by_one(bad: tuple[int, ...]) -> None:
    asked: list[int] = []

    def fails(rows: Any) -> bool:
        asked.append(1)
        return bool(set(rows) & set(bad))

    found = samples.guilty(range(8), fails)
    assert found == (bad or tuple(range(8)))
    assert len(asked) <= 16


def test_samples_that_fail_only_together_are_named_together() -> None:
    assert samples.guilty(range(8), lambda rows: {2, 3} <= set(rows)) == (2, 3)
    assert samples.guilty(range(8), lambda rows: {0, 7} <= set(rows)) == tuple(range(8))


def test_the_search_ends() -> None:
    assert samples.guilty(range(1000), lambda rows: True, most=10)


def test_samples_of_another_batch_stand_in_at_the_same_places() -> None:
    batch = {"x": torch.arange(4.0), "y": torch.arange(4), "scale": 2.0}
    other = {"x": torch.tensor([-1.0, -2.0]), "y": torch.tensor([8, 9]), "scale": 2.0}
    assert samples.can_mix(batch, other)
    found = samples.mixed(batch, other, [1], range(4))
    assert found["x"].tolist() == [-1.0, 1.0, -1.0, -2.0] and found["y"].tolist() == [8, 1, 8, 9]
    assert samples.take(batch, [1, 3])["x"].tolist() == [1.0, 3.0]
    assert not samples.can_mix(batch, {"x": torch.ones(2, 3), "y": torch.ones(2), "scale": 1.0})
    assert samples.count(7) is None and samples.count(batch) == 4


# -- the walk ----------------------------------------------------------------------------------------------------------


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


# -- weights and rebuilding --------------------------------------------------------------------------------------------


def test_a_flipped_weight_is_named() -> None:
    module = mlp()
    assert stray(module) is None
    with torch.no_grad():
        module[2].weight[0, 5] = 1.7e30
    found = stray(module)
    assert found is not None and (found.name, found.index) == ("2.weight", (0, 5))
    with torch.no_grad():
        module[0].bias[3] = math.nan
    found = stray(module)
    assert found is not None and (found.name, found.index) == ("0.bias", (3,))


class Sized(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(8, width)


def test_a_module_is_built_from_its_class_and_hyperparameters() -> None:
    bundle = Bundle(0, hyperparameters={"width": 5}, weights={k: v + 1 for k, v in Sized(5).state_dict().items()})
    module = build(bundle, Sized)
    assert torch.equal(module.state_dict()["layer.bias"], bundle.weights["layer.bias"])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="a factory"):
        build(Bundle(0, weights={"a": torch.ones(1)}), Sized)
    with pytest.raises(ReplayError, match="do not fit the module"):
        build(Bundle(0, weights={"a": torch.ones(1)}), mlp)
    with pytest.raises(ReplayError, match="newest checkpoint was /run/last"):
        build(Bundle(0, weights_from="/run/last.ckpt"), mlp)
    with pytest.raises(ReplayError, match="training_step"):
        Stage(mlp(), Bundle(0), None, torch.device("cpu"))
    with pytest.raises(ReplayError, match="cannot be found"):
        named("tests.replay.nothing_here")
    assert named("tests.builders.mlp") is mlp


def test_weights_of_a_checkpoint_are_taken(tmp_path: Path) -> None:
    other = mlp(seed=4)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "a.ckpt")
    module = build(Bundle(0), mlp, tmp_path / "a.ckpt")
    assert torch.equal(module.state_dict()["0.weight"], other.state_dict()["0.weight"])


def test_an_attempt_repeats_itself_and_leaves_weights_and_random_numbers_alone() -> None:
    module = nn.Sequential(*mlp(norm=True), nn.Dropout(0.5))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    stage = Stage(module, Bundle(0, norm=1.0), lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), torch.device("cpu"))
    [batch] = regression(1)
    from lightning_gradguard.evidence.randomness import read

    states = read()
    first = stage.attempt(batch, 0, states)
    torch.rand(5)
    drawn = torch.get_rng_state()
    assert stage.attempt(batch, 0, states) == first
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(
        torch.equal(v, before[k]) for k, v in module.state_dict().items() if "running" not in k and "num" not in k
    )
    assert Pass(None, {}).states is None
