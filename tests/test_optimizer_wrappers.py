"""Optimizers that others wrap, or that keep to no constructor: guarded like the one inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.optimizer_wrappers import StepHook, innermost
from lightning_gradguard.snapshots import restore
from tests.builders import mlp, regression, same, spoil

STEPS, BAD = 40, 20
ADAM = partial(torch.optim.AdamW, lr=0.01)


class Accelerated(torch.optim.Optimizer):
    """What accelerate's wrapper is: it never calls its base class's constructor, and hands everything on."""

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Lookahead(torch.optim.Optimizer):
    """Slow weights beside those of an inner optimizer, and no constructor of the base class."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, {}
        self.state: Any = {p: {"slow": p.detach().clone()} for g in self.param_groups for p in g["params"]}

    def step(self, closure: Any = None) -> Any:
        self.optimizer.step()
        with torch.no_grad():
            for p, held in self.state.items():
                if p.grad is not None:
                    held["slow"].lerp_(p, 0.5)
                    p.copy_(held["slow"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class EightBit(torch.optim.Optimizer):
    """Momentum in eight bits with a scale beside it, as bitsandbytes keeps its moments."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p]
                old = held["state1"].float() * held["absmax1"] if held else 0.0
                new = 0.9 * old + p.grad
                scale = new.abs().max().clamp(min=1e-12) / 127
                held["state1"], held["absmax1"] = (new / scale).round().to(torch.int8), scale
                p.sub_(group["lr"] * new)


def foreign(package: str, name: str, **options: Any) -> Callable[[Any], Any]:
    def make(parameters: Any) -> Any:
        made = getattr(pytest.importorskip(package), name)(parameters, **options)
        if hasattr(made, "train"):
            made.train()
        return made

    return make


def fabric(parameters: Any) -> Any:
    return Fabric(accelerator="cpu", devices=1).setup_optimizers(ADAM(parameters))


MAKE: dict[str, Callable[[Any], Any]] = {
    "accelerate's": lambda parameters: Accelerated(ADAM(parameters)),
    "Lightning's": lambda parameters: LightningOptimizer(ADAM(parameters)).optimizer,
    "Fabric's": fabric,
    "one around another": lambda parameters: Accelerated(Accelerated(ADAM(parameters))),
    "Lookahead": lambda parameters: Lookahead(ADAM(parameters)),
    "eight bits": EightBit,
    "bitsandbytes": foreign("bitsandbytes.optim", "AdamW8bit", lr=0.01, min_8bit_size=16),
    "schedule-free": foreign("schedulefree", "AdamWScheduleFree", lr=0.01, warmup_steps=10),
}


def train(make: Callable[[Any], Any], batches: Any, guard: Guard | None = None) -> tuple[Any, Any, list[int]]:
    """Return weights, the optimizer's state and the steps that were skipped."""
    network, skipped = mlp(norm=True), []
    optimizer = make(network.parameters())
    if guard is not None:
        guard.bind(network)
        guard.attach(optimizer)
    for index, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        if guard is not None and guard.before_step(optimizer, loss=loss, batch=(x, y)).skipped:
            skipped.append(index)
        optimizer.step()
    return copy.deepcopy(network.state_dict()), list(optimizer.state.values()), skipped


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_bad_batch_leaves_no_trace_under(make: Callable[[Any], Any]) -> None:
    batches = regression(STEPS)
    plain = train(make, batches[:BAD] + batches[BAD + 1 :])
    assert same(plain, train(make, batches[:BAD] + batches[BAD + 1 :], Guard()))
    assert same((*plain[:2], [BAD]), train(make, spoil(batches, BAD), Guard()))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_going_back_restores_the_state_of(make: Callable[[Any], Any]) -> None:
    network, batches = mlp(), regression(STEPS)
    optimizer = make(network.parameters())
    inside, parameters = innermost(optimizer), dict(network.named_parameters())

    def on(steps: Any) -> Any:
        for x, y in steps:
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x), y).backward()
            optimizer.step()
        return copy.deepcopy([list(parameters.values()), list(inside.state.values())])

    store, then = SnapshotStore(), on(batches[:BAD])
    store.take(BAD, parameters, {}, inside)
    assert not same(then, on(batches[BAD:])) and store.latest is not None
    restore(store.latest, parameters, {}, inside)
    assert same(then, [list(parameters.values()), list(inside.state.values())])


@pytest.mark.parametrize("make", [MAKE["Lookahead"], MAKE["accelerate's"], ADAM], ids=["covered", "inside", "plain"])
def test_a_function_is_called_after_each_step_until_it_is_removed(make: Callable[[Any], Any]) -> None:
    optimizer, called = innermost(make(mlp().parameters())), []
    hook = StepHook(optimizer, lambda: called.append(1))
    optimizer.step()
    hook.remove()
    optimizer.step()
    assert called == [1] and "step" not in vars(optimizer)


class Engine:
    """Something that has gradients of its own, and no groups to show."""

    def step(self) -> None:
        """Make an update."""


@pytest.mark.parametrize("thing", [Engine(), None, mlp()])
def test_what_is_no_optimizer_is_named(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer or wrap one.*got "):
        Guard(mlp()).before_step(thing)


@pytest.mark.parametrize("groups", [[], [{"params": []}]], ids=["no group", "an empty group"])
def test_an_optimizer_of_nothing_is_no_trouble(groups: Any) -> None:
    optimizer = ADAM([{"params": list(mlp().parameters())}])
    optimizer.param_groups[:] = [{**optimizer.param_groups[0], **group} for group in groups]
    guard = Guard(mlp())
    for _ in range(60):
        assert not guard.before_step(optimizer, loss=1.0).skipped
    assert not guard.incidents


def test_rates_that_an_optimizer_finds_by_itself_are_left_to_it() -> None:
    def make(parameters: Any) -> Any:
        optimizer = ADAM(parameters)
        for group in optimizer.param_groups:
            group["found"], group["lr"] = group["lr"], None
        step = optimizer.step

        def found(closure: Any = None) -> None:
            for group in optimizer.param_groups:
                group["lr"] = group["found"]
            step()
            for group in optimizer.param_groups:
                group["lr"] = None

        optimizer.step = found  # type: ignore[method-assign]
        return optimizer

    batches = regression(STEPS)
    plain = train(make, batches[:BAD] + batches[BAD + 1 :])
    assert same((*plain[:2], [BAD]), train(make, spoil(batches, BAD), guard := Guard()))
    assert len(guard.incidents) == 1


def test_zero_redundancy(tmp_path: Path) -> None:
    distributed: Any = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        test_a_bad_batch_leaves_no_trace_under(
            partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.AdamW, lr=0.01)  # type: ignore[arg-type]
        )
    finally:
        distributed.destroy_process_group()
