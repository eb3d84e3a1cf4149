"""Lightning with the CPU in a GPU's part: clipping that is configured besides, and a device that is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_gradguard import GradGuard, deferred_step
from lightning_gradguard.device_gate import DeviceGate
from tests.builders import loader, regression, trainer

AT = 60


class Spiking(LightningModule):
    """A module with one step of large gradients, whose fused optimizer a step may be left to."""

    def __init__(self, by: float = 1.0, fails_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.by, self.fails_at = by, fails_at
        self.weights: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if index == self.fails_at:
            raise ValueError("the user's own error")
        return nn.functional.mse_loss(self.net(batch[0]), batch[1]) * (self.by if index == AT else 1.0)

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in self.parameters()]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, fused=True)


class OwnClipping(Spiking):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.1)


def fit(root: Path, module: Spiking, guard: GradGuard, **options: Any) -> None:
    trainer(root, callbacks=[guard], **options).fit(module, loader(regression(AT + 8, size=32)))


@pytest.mark.parametrize(("clip", "by"), [(None, 100.0), (1.0, 100.0), (0.1, 30.0), ("own", 30.0)])
def test_a_spike_is_clipped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Any, by: float) -> None:
    moves = []
    for devices in ({"cpu"}, set()):
        monkeypatch.setattr(deferred_step, "DEVICES", frozenset(devices))
        module, guard = (OwnClipping if clip == "own" else Spiking)(by=by), GradGuard(journal=False)
        fit(tmp_path, module, guard, gradient_clip_val=None if clip == "own" else clip)
        assert [incident.step for incident in guard.incidents] == [AT]
        assert ("on the device" in guard.incidents[0].actions[0].outcomes[0].detail) is bool(devices)
        moves.append(float((module.weights[AT] - module.weights[AT - 1]).norm()))
    assert moves[0] == pytest.approx(moves[1], rel=1e-3)


def test_the_user_s_own_error_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is gone raises at whatever is asked of it, and what was changed is put back all the same."""
    monkeypatch.setattr(deferred_step, "DEVICES", frozenset({"cpu"}))
    guard, module = GradGuard(journal=False), Spiking(fails_at=AT - 3)
    collect, fails = DeviceGate.collect, guard.on_exception

    def on_exception(*args: Any) -> None:
        def gone(self: DeviceGate) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        monkeypatch.setattr(DeviceGate, "collect", gone)
        fails(*args)

    monkeypatch.setattr(guard, "on_exception", on_exception)
    with pytest.raises(ValueError, match="the user's own error"):
        fit(tmp_path, module, guard)
    monkeypatch.setattr(DeviceGate, "collect", collect)
    assert guard._inputs.batch is None
    assert guard.guard.processes == 1
    assert not any("forward" in key and value for key, value in vars(module.net[0]).items() if "hooks" in key)
