"""Strategies that are refused at setup; those that are guarded have processes of their own in ``tests/strategies/``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_gradguard import GradGuard
from lightning_gradguard.trainer import refusal
from tests.builders import Net, mlp
from tests.compatibility.matrix import cells

SGD = torch.optim.SGD


def beside(strategy: Any) -> Any:
    """Return what looks like a Trainer with this strategy."""
    return type("FakeTrainer", (), {"strategy": strategy, "callbacks": []})()


def named(*names: str) -> Any:
    """Return an instance of a class of the last name that derives from those before."""
    kind: type = object
    for name in names:
        kind = type(name, (kind,), {})
    return kind()


HIDDEN: dict[str, Any] = {
    "DeepSpeed": lambda: named("DeepSpeedStrategy"),
    "FSDP1 (`FSDPStrategy`)": FSDPStrategy,
}
NOTES = {
    "DeepSpeed": "its engine owns clipping and the update, and hands out gradients per micro-batch",
    "FSDP1 (`FSDPStrategy`)": "its flat shards hide the layers; use FSDP2",
}


@pytest.mark.parametrize("make", cells("Strategies", HIDDEN, "refused", notes=NOTES))
def test_strategies_that_hide_gradients_are_refused(make: Any) -> None:
    strategy = make()
    with pytest.raises(MisconfigurationException, match=type(strategy).__name__):
        GradGuard().setup(beside(strategy), Net(mlp(), SGD), "fit")
    GradGuard().setup(beside(strategy), Net(mlp(), SGD), "test")


def test_what_derives_from_them_is_refused_by_its_own_name() -> None:
    with pytest.raises(MisconfigurationException, match="TunedStrategy"):
        GradGuard().setup(beside(named("DeepSpeedStrategy", "TunedStrategy")), Net(mlp(), SGD), "fit")


@pytest.mark.cell("Strategies", "FSDP2 with torch 2.4", "refused", note="DTensor became public with torch 2.5")
def test_shards_that_cannot_be_summed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "can_sum_over_shards", lambda: False)
    with pytest.raises(MisconfigurationException, match=r"ModelParallelStrategy with torch .* 2\.5"):
        GradGuard().setup(beside(ModelParallelStrategy()), Net(mlp(), SGD), "fit")


@pytest.mark.cell(
    "Strategies", "SyncBatchNorm on several CPU processes", "refused", note="by torch itself; not tried on GPUs"
)
def test_synchronised_statistics_need_a_gpu(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="GPU"):
            torch.nn.parallel.DistributedDataParallel(torch.nn.SyncBatchNorm(3))
    finally:
        torch.distributed.destroy_process_group()
