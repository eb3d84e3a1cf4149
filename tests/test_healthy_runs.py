"""A healthy run ends bit-identical to the same run without the guard, and no remedy is applied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard
from lightning_gradguard.guard import Guard
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, trainer

STEPS = 60


class Recurrent(nn.Module):
    """An LSTM that reads the eight features as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 12, batch_first=True), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[..., None])[0][:, -1])


class Attentive(nn.Module):
    """A transformer encoder, with dropout, that reads the eight features as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x[..., None])).mean(1))


def cnn() -> nn.Module:
    torch.manual_seed(5)
    layers = [nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 1))


def transformer() -> nn.Module:
    torch.manual_seed(5)
    return Attentive()


def lstm() -> nn.Module:
    torch.manual_seed(5)
    return Recurrent()


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adamw(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=3e-3)


def rmsprop(parameters: Any) -> Any:
    return torch.optim.RMSprop(parameters, lr=1e-3)


def warm_up(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))


RUNS = {
    "cnn-sgd": (cnn, sgd, None, {}),
    "transformer-adamw-warmup": (transformer, adamw, warm_up, {}),
    "lstm-rmsprop": (lstm, rmsprop, None, {}),
    "clipped-by-user": (cnn, sgd, None, {"gradient_clip_val": 0.5}),
    "accumulating": (lstm, adamw, None, {"accumulate_grad_batches": 4}),
    "bf16": (transformer, adamw, warm_up, {"precision": "bf16-mixed"}),
    "float64": (lstm, adamw, None, {"precision": "64-true"}),
}


def run(make: Callable[[], nn.Module], optimizer: Any, scheduler: Any, options: Any, callbacks: Any, root: Path) -> Any:
    module = Net(make(), optimizer, scheduler)
    torch.manual_seed(9)
    fit = trainer(root, callbacks=callbacks, **options)
    fit.fit(module, loader(regression(STEPS)))
    return frozen_copy(fit)


@pytest.mark.parametrize("name", RUNS)
def test_a_healthy_run_is_bit_identical_with_and_without_the_guard(name: str, tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = run(*RUNS[name], [], tmp_path)
        guarded = run(*RUNS[name], [guard], tmp_path)
    assert same(plain, guarded)
    assert guard.incidents == ()


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    plain = run(*RUNS["cnn-sgd"], [], tmp_path)
    other = run(cnn, lambda p: torch.optim.SGD(p, lr=0.0100001, momentum=0.9), None, {}, [], tmp_path)
    assert not same(plain, other)


# Every way in which torch carries out an update.
PATHS: dict[str, Any] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}
OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
    "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=1e-3),
}


def single() -> nn.Module:
    """One parameter tensor is all there is."""
    torch.manual_seed(5)
    return nn.Linear(8, 1, bias=False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("make", [partial(mlp, norm=True), single], ids=["many tensors", "single tensor"])
def test_a_healthy_plain_loop_is_bit_identical_with_the_guard(make: Any, family: str, path: str) -> None:
    def loop(*, guarded: bool) -> Any:
        network = make()
        optimizer = OPTIMIZERS[family](network.parameters(), **PATHS[path])
        guard = Guard(network)
        for x, y in regression(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(x), y)
            loss.backward()
            if guarded:
                assert not guard.before_step(optimizer, loss=loss, batch=(x, y)).skipped
            optimizer.step()
        return network.state_dict(), optimizer.state_dict()["state"]

    assert same(loop(guarded=False), loop(guarded=True))
