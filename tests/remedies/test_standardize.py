"""A layer is trained as if what it takes in were standardised, and nothing else of it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.remedies import Initialize
from lightning_gradguard.remedies.standardize import StandardInputs, suits, wild
from tests.builders import context_for, same, through_a_file

Made = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Made] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "Adam with decay": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "AdamW with decay": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
}
SCALES = torch.tensor([300.0, 1.0, 0.1, 10.0, 1.0], dtype=torch.float64)
OFFSETS = torch.tensor([700.0, 0.0, 0.5, 20.0, 2.0], dtype=torch.float64)


def batch(seed: int = 0, count: int = 64) -> tuple[Tensor, Tensor]:
    """Return columns of wild scale, and classes that all of them tell of."""
    torch.manual_seed(seed)
    z = torch.randn(count, 5, dtype=torch.float64)
    return z * SCALES + OFFSETS, (z.sum(1) > 0.0).long()


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2)).to(dtype)


def met(net: nn.Sequential, x: Tensor) -> StandardInputs:
    """Return what is known of the columns after a first batch."""
    standard = StandardInputs()
    standard.waiting = ["0"]
    standard.meet("0", net[0], x, made=False)
    return standard


def step(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, standard: StandardInputs | None
) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    if standard is not None:
        standard.before_update(context_for(net, optimizer))
    optimizer.step()
    if standard is not None:
        standard.after_update()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_on_raw_columns_is_the_step_of_a_copy_on_standardised_ones(name: str) -> None:
    x, y = batch()
    raw, twin = network(), network()
    standard = met(raw, x)
    columns = standard.columns["0"]
    if "decay" in name:  # That of a bias goes by where zero is, which a change of variables moves.
        for net in (raw, twin):
            net[0].bias.requires_grad_(False)
        columns.mean.zero_()
        raw.load_state_dict(twin.state_dict())
        with torch.no_grad():
            raw[0].weight.div_(columns.deviation)
    optimizers = [OPTIMIZERS[name](net.parameters()) for net in (raw, twin)]
    for seed in range(20):
        x, y = batch(seed)
        z = (x - columns.mean) / columns.deviation
        torch.testing.assert_close(raw(x), twin(z), rtol=1e-8, atol=1e-8)
        step(raw, optimizers[0], x, y, standard)
        step(twin, optimizers[1], z, y, None)
    torch.testing.assert_close(raw[0].weight * columns.deviation, twin[0].weight, rtol=1e-8, atol=1e-8)


def test_a_convolution_keeps_its_function_and_its_padding() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, 8, 8, dtype=torch.float64) * torch.tensor([1e3, 1.0]).view(2, 1, 1) + 50.0
    conv = nn.Conv2d(2, 4, 3, padding=1).double()
    found = wild(conv, x)
    assert found is not None and found.mean.shape == (1, 2, 1, 1)
    for scale in (0.0, 1.0):  # The gradient is that of W' by the chain rule: moved along it, the loss changes as told.
        conv.zero_grad()
        conv(x).square().mean().backward()
        standard = StandardInputs()
        standard.columns["0"] = copy.deepcopy(found)
        net = nn.Sequential(conv)
        before, optimizer = float(conv(x).detach().square().mean()), torch.optim.SGD(net.parameters(), scale * 1e-9)
        standard.before_update(context_for(net, optimizer))
        given = conv.weight.grad
        assert given is not None and conv.bias is not None and conv.bias.grad is not None
        told = float(given.square().sum() + conv.bias.grad.square().sum()) * scale * 1e-9
        optimizer.step()
        standard.after_update()
        assert before - float(conv(x).detach().square().mean()) == pytest.approx(told, rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("made", [torch.optim.SGD, torch.optim.AdamW])
def test_where_no_update_is_made_nothing_changes(made: Any) -> None:
    x, y = batch()
    net = network()
    standard, optimizer = met(net, x), made(net.parameters(), 0.1)
    nn.functional.cross_entropy(net(x), y).backward()
    held, raw = copy.deepcopy(net.state_dict()), net[0].weight.grad
    assert raw is not None
    standard.before_update(context_for(net, optimizer))
    assert not same(net[0].weight.grad, raw)
    standard.after_update()
    assert same(dict(net.state_dict()), dict(held)) and net[0].weight.grad is raw


def test_a_gradient_that_was_zeroed_and_came_anew_is_not_replaced() -> None:
    x, y = batch()
    net = network()
    standard, optimizer = met(net, x), torch.optim.SGD(net.parameters(), 0.1)
    nn.functional.cross_entropy(net(x), y).backward()
    standard.before_update(context_for(net, optimizer))
    optimizer.zero_grad(set_to_none=False)  # A scaler has skipped the update.
    nn.functional.cross_entropy(net(x), y).backward()
    newest = net[0].weight.grad
    standard.after_update()
    assert net[0].weight.grad is newest


def columns_of(x: Tensor, **more: Any) -> Any:
    return wild(nn.Linear(x.shape[-1], 4), x, **more)


def test_what_is_of_the_order_of_one_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    assert columns_of(torch.randn(64, 5) * torch.tensor([1.0, 3.0, 0.01, 0.5, 1.0])) is None
    assert columns_of(torch.rand(64, 5)) is None
    assert columns_of(torch.randint(9, (64, 5))) is None, "of integers"
    assert columns_of(torch.full((64, 5), torch.nan)) is None


def test_constant_and_rare_columns_are_not_blown_up() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5) * 1e3
    x[:, 0], x[:, 1], x[:, 2] = 0.0, 500.0, 0.0
    x[5, 2] = 1.0
    found = columns_of(x)
    assert found.mean[0, 0] == 0.0 and found.deviation[0, 0] == 1.0, "of zeros nothing is known"
    assert found.mean[0, 1] == 500.0 and found.deviation[0, 1] == 500.0
    assert (1.0 - found.mean[0, 2]) / found.deviation[0, 2] <= 4.0 + 1e-4
    few = columns_of(x[:4])
    assert not few.mean.any(), "the mean of four is worth little"


def test_of_columns_that_are_learned_only_the_wild_one_is_taken() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    x[:, 2] = x[:, 2] * 1e8 + 1e9
    found = columns_of(x, learned=True)
    assert found.mean[0, [0, 1, 3, 4]].tolist() == [0.0] * 4 and found.deviation[0, [0, 1, 3, 4]].tolist() == [1.0] * 4
    assert found.mean[0, 2] == pytest.approx(1e9, rel=0.1) and found.deviation[0, 2] == pytest.approx(1e8, rel=0.3)


def test_what_other_layers_have_made_is_left_as_it_is() -> None:
    x, _ = batch()
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2)).double()
    standard = StandardInputs()
    standard.waiting = ["0", "1"]
    for name in ("0", "1"):
        standard.meet(name, net[int(name)], x, made=name == "1")
    assert set(standard.columns) == {"0"}


@pytest.mark.parametrize(
    ("made", "more", "suited"),
    [
        (torch.optim.SGD, {}, True),
        (torch.optim.AdamW, {}, True),
        (torch.optim.LBFGS, {}, False),
        (torch.optim.Adadelta, {}, False),
        (torch.optim.Adam, {"weight_decay": 0.1, "fused": True}, False),
        (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}, True),
    ],
)
def test_only_optimizers_that_go_by_gradients_alone_are_suited(made: Any, more: Any, suited: bool) -> None:
    assert suits(made(network().parameters(), lr=0.1, **more)) is suited


# -- under the guard


def train(net: nn.Module, optimizer: Any, guard: Guard | None, steps: range, *, raw: bool = True) -> list[float]:
    losses = []
    for seed in steps:
        x, y = batch(seed)
        x = (x if raw else (x - OFFSETS) / SCALES).float()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def guarded(net: nn.Module) -> tuple[torch.optim.Optimizer, Guard, Any]:
    optimizer, guard = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), Guard(net)
    return optimizer, guard, guard.attach(optimizer)


def test_a_run_on_raw_columns_learns_from_all_of_them() -> None:
    net = network(torch.float32)
    optimizer, guard, track = guarded(net)
    losses = train(net, optimizer, guard, range(400))
    assert track.remedies.rescaled == {"0.weight"}
    assert sum(losses[-20:]) / 20 < 0.2
    alone = network(torch.float32)
    lost = train(alone, torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9), None, range(400))
    assert not sum(lost[-20:]) / 20 < 0.4


def test_a_healthy_run_is_the_same_to_the_bit() -> None:
    ends = []
    for watched in (False, True):
        net = network(torch.float32)
        optimizer, guard, _ = guarded(net)
        train(net, optimizer, guard if watched else None, range(100), raw=False)
        assert not guard.incidents
        ends.append(dict(net.state_dict()))
    assert same(*ends)


def test_a_run_that_is_resumed_goes_on_as_it_was() -> None:
    net = network(torch.float32)
    optimizer, guard, _ = guarded(net)
    train(net, optimizer, guard, range(150))
    saved = through_a_file([net.state_dict(), optimizer.state_dict(), guard.state_dict()])
    train(net, optimizer, guard, range(150, 200))
    other = network(torch.float32)
    anew, second, track = guarded(other)
    other.load_state_dict(saved[0])
    anew.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    assert track.remedies.rescaled == {"0.weight"}
    train(other, anew, second, range(150, 200))
    assert same(dict(net.state_dict()), dict(other.state_dict()))


def test_what_is_taken_back_trains_on_the_inputs_as_they_are() -> None:
    x, y = batch()
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    remedy, context = Initialize(), context_for(net, optimizer)
    remedy.apply(context)
    nn.functional.cross_entropy(net(x), y).backward()
    assert "as if the inputs were standardised" in remedy.finish() and remedy.rescaled == {"0.weight"}
    step(net, optimizer, x, y, remedy._standard)
    remedy.take_back(context)
    assert not remedy.rescaled and net[0].weight not in optimizer.state, "moments of other variables are of no use"
    raw = net[0].weight.grad
    remedy.before_update(context)
    assert net[0].weight.grad is raw


def test_columns_that_are_all_but_zero_are_left_alone() -> None:
    layer = nn.Linear(2, 3)
    found = wild(layer, torch.tensor([[1e-45, 1e-3], [1e-45, 2e-3], [0.0, 3e-3]] * 8))
    assert found is not None
    assert found.deviation[0, 0] == 1.0 and found.mean[0, 0] == 0.0 and found.deviation[0, 1] < 0.01
