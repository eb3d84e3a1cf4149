"""The heatmap lists layers as the forward pass uses them, whatever the order of registration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.diagnostics.sink import Sink
from lightning_gradguard.layers.forward_order import arranged, first_uses, registered
from lightning_gradguard.records import Window
from tests.builders import Net, loader, trainer


class Backwards(nn.Module):
    """Layers registered last first, one that is never run, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.aside = nn.Linear(8, 1), nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.scale = nn.Parameter(torch.ones(8))
        self.norm, self.stem = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in (self.blocks[1], self.blocks[0], self.blocks[1]):
            x = block(x).relu()
        y: Tensor = self.head(x * self.scale)
        return y


ORDER = ("stem", "norm", "blocks.1", "blocks.0", "scale", "head", "aside")


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    torch._dynamo.reset()


def run(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y


def half(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return run(model, x)


WAYS: dict[str, Any] = {
    "eager": run,
    "autocast": half,
    "compiled": lambda model, x: torch.compile(model, backend="aot_eager")(x),
    "checkpointed": partial(checkpoint, use_reentrant=False),
    "replicas": lambda model, x: model(x) + model(x),
}


OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
"""Graphs compiled there take their inputs in the order of registration, so that is how layers are listed."""


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=pytest.mark.skipif(OLD and name == "compiled", reason="torch is too old"), id=name)
        for name, way in WAYS.items()
    ],
)
@pytest.mark.parametrize("after", [False, True], ids=["before backward", "after backward"])
def test_layers_are_listed_as_they_run(way: Any, after: bool) -> None:
    model = Backwards()
    loss = way(model, torch.randn(4, 8)).float().sum()
    if after:
        loss.backward()
    assert arranged(model, first_uses(loss)) == ORDER
    assert registered(model) != ORDER


def test_a_part_that_is_compiled_lies_where_it_is_called() -> None:
    model = Backwards()
    model.blocks[0] = torch.compile(model.blocks[0], backend="aot_eager")  # type: ignore[assignment]
    assert arranged(model, first_uses(model(torch.randn(4, 8)).sum())) == ORDER


def test_what_autograd_does_not_see_is_not_made_up() -> None:
    model = Backwards()
    hidden = checkpoint(model, torch.randn(4, 8, requires_grad=True), use_reentrant=True)
    assert first_uses(torch.zeros(())) == {}
    assert arranged(model, first_uses(hidden.sum())) == registered(model)


class Seen(Sink):
    """Keep the windows."""

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def window(self, window: Window) -> None:
        self.windows.append(window)


def trained(compile: bool, guarded: bool) -> tuple[list[Tensor], list[Window], int]:
    """Train a few steps; return the weights, the windows, and how often a graph was compiled."""
    graphs = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model, seen = Backwards(), Seen()
    forward = torch.compile(model, backend=backend) if compile else model
    optimizer = torch.optim.AdamW(
        # Weights that decay first, as many do: the optimizer's order is neither that of registration nor of the forward
        # pass.
        [{"params": [p for p in model.parameters() if (p.ndim > 1) is large]} for large in (True, False)]
    )
    guard = Guard(model, sinks=[seen], log_every=1) if guarded else None
    torch.manual_seed(1)
    for _ in range(6):
        loss = forward(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss)
        optimizer.step()
    return list(model.parameters()), seen.windows, graphs


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_windows_come_in_forward_order_and_the_run_is_the_same(compile: bool) -> None:
    plain, _, before = trained(compile, guarded=False)
    weights, windows, after = trained(compile, guarded=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, weights, strict=True))
    assert [window.layers for window in windows] == [ORDER[:-1]] * 6
    assert before == after == int(compile), "nothing is compiled again"


def test_each_layer_keeps_its_own_numbers() -> None:
    model, seen = Backwards(), Seen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, sinks=[seen], log_every=1)
    loss = model(torch.randn(4, 8)).sum()
    loss.backward()
    guard.before_step(optimizer, loss=loss)
    (window,) = seen.windows
    for layer, peak in zip(window.layers, window.layer_peaks, strict=True):
        of = [p.grad for n, p in model.named_parameters() if n == layer or n.rpartition(".")[0] == layer]
        assert peak == pytest.approx(torch.cat([g.flatten() for g in of if g is not None]).norm().item())


def test_each_optimizer_goes_by_a_loss_of_its_own() -> None:
    """Both losses of a GAN come before both steps; one says nothing of the other's layers."""
    pair, seen = nn.ModuleDict({"other": Backwards(), "mine": Backwards()}), Seen()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in pair.values()]
    guard = Guard(pair, sinks=[seen], log_every=1)
    for optimizer in optimizers:
        guard.attach(optimizer)
    for part in pair.values():
        loss = part(torch.randn(4, 8)).sum()
        guard.follow(loss)
        loss.backward()
    for optimizer in optimizers:
        guard.before_step(optimizer)
    assert [window.layers for window in seen.windows] == [
        tuple(f"{name}.{layer}".removesuffix(".scale") for layer in ORDER[:-1]) for name in pair
    ]


class Reading(GradGuard):
    """Keep the windows of a run under Lightning."""

    seen: Seen

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self.guard.sinks.append(self.seen)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_under_lightning_and_after_a_resume(tmp_path: Path, accumulate: int) -> None:
    batches = [(torch.randn(4, 8), torch.randn(4, 1)) for _ in range(12)]
    file: Path | None = None
    for steps in (2, 4):
        guard = Reading(log_every=1)
        guard.seen = Seen()
        fit = trainer(tmp_path, callbacks=[guard], max_epochs=9, max_steps=steps, accumulate_grad_batches=accumulate)
        fit.fit(Net(Backwards(), partial(torch.optim.SGD, lr=0.01)), loader(batches), ckpt_path=file)
        listed = {window.layers for window in guard.seen.windows}
        assert listed == {tuple(f"network.{layer}".removesuffix(".scale") for layer in ORDER[:-1])}
        file = tmp_path / "run.ckpt"
        fit.save_checkpoint(file)
