"""A module is built again, and given its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_gradguard.evidence import Bundle
from lightning_gradguard.replay import ReplayError, replay
from lightning_gradguard.replay.attempt import Stage
from lightning_gradguard.replay.rebuild import build, named
from tests.builders import mlp


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
    with pytest.raises(ReplayError, match="no checkpoint at"):
        build(Bundle(0), mlp, tmp_path / "missing.ckpt")
    with pytest.raises(ReplayError, match="nothing can be computed on 'nowhere' here"):
        replay(Bundle(0, weights=dict(mlp().state_dict())), mlp, device="nowhere")
    with pytest.raises(ReplayError, match="cannot be found"):
        named("tests.replay.nothing_here")
    assert named("tests.builders.mlp") is mlp


def test_weights_of_a_checkpoint_are_taken(tmp_path: Path) -> None:
    other = mlp(seed=4)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "a.ckpt")
    module = build(Bundle(0), mlp, tmp_path / "a.ckpt")
    assert torch.equal(module.state_dict()["0.weight"], other.state_dict()["0.weight"])
