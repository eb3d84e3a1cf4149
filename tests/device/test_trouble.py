"""Trouble on a device: bad steps, repairs and ways back, on two devices, on Apple's, and short of memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from lightning_gradguard import SnapshotStore
from lightning_gradguard.attribution.optimizer_state import spoilt
from lightning_gradguard.attribution.weights import examine
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.diagnostics.histograms import count
from lightning_gradguard.remedies import Augment, Reinitialize
from lightning_gradguard.snapshots.snapshot import forget, restore
from lightning_gradguard.statistics.norms import examine as examine_gradients
from tests.device.simulated import DEVICE, Device, far, moved, near, simulated
from tests.device.training import CALM, OPTIMIZERS, Loop, batches, network

AT = CALM + 10
MORE = {
    "ASGD": partial(torch.optim.ASGD, lr=1e-2, foreach=True),
    "NAdam": partial(torch.optim.NAdam, lr=1e-2, foreach=True),
    "RAdam": partial(torch.optim.RAdam, lr=1e-2, foreach=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=1e-2, foreach=True),
    "Adam fused amsgrad": partial(torch.optim.Adam, lr=1e-2, fused=True, amsgrad=True),
}


@pytest.fixture(autouse=True)
def device() -> Iterator[Device]:
    with simulated() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield found


def finite(loop: Loop) -> bool:
    state = [near(t) for t in torch.utils._pytree.tree_leaves(list(loop.optimizer.state.values()))]
    held = [*loop.weights, *loop.twin.buffers(), *(t for t in state if isinstance(t, torch.Tensor))]
    return all(bool(t.isfinite().all()) for t in held)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_nan_reaches_nothing(kind: str) -> None:
    loop = Loop(network(), OPTIMIZERS[kind])
    for step, (inputs, targets) in enumerate(batches(AT + 15)):
        if step == AT:
            inputs[0, 0] = math.nan
        loop.step(inputs, targets)
        assert not (step == AT and loop.waits[step])  # The device skipped it by itself.
    assert loop.incidents == [(AT, "non-finite", ("skip",))]
    assert finite(loop)
    assert not {"grad_scale", "found_inf"} & set(vars(loop.optimizer))


@pytest.mark.parametrize("kind", [*OPTIMIZERS, *MORE])
def test_state_that_was_removed_is_put_back_where_the_optimizer_keeps_it(kind: str) -> None:
    """Also where it was removed of all parameters, so that no other one tells."""
    for removed in ("one", "all"):
        net, _ = moved(network())
        optimizer = {**OPTIMIZERS, **MORE}[kind](net.parameters())
        parameters = dict(net.named_parameters())
        for p in parameters.values():
            p.grad = far(torch.ones_like(near(p)))
        optimizer.step()
        places = {
            name: {key: value.device for key, value in optimizer.state[p].items() if isinstance(value, torch.Tensor)}
            for name, p in parameters.items()
        }
        store = SnapshotStore()
        store.take(1, parameters, {}, optimizer)
        for p in list(parameters.values())[: 1 if removed == "one" else None]:
            forget(optimizer, p)
        assert store.latest is not None
        restore(store.latest, parameters, {}, optimizer)
        for name, p in parameters.items():
            assert {key: optimizer.state[p][key].device for key in places[name]} == places[name]
        optimizer.step()


@pytest.mark.parametrize("method", ["redraw", "auto"])
@pytest.mark.parametrize("kind", ["AdamW fused", "Adam capturable", "AdamW foreach"])
def test_a_layer_is_mended_and_the_run_goes_back_right_after(kind: str, method: Any) -> None:
    remedies = [Reinitialize(method=method) if r.name == "reinitialize" else r for r in default_remedies()]
    loop = Loop(network(), OPTIMIZERS[kind], remedies=remedies)
    for step, (inputs, targets) in enumerate(batches(AT + 45)):
        if step == AT:
            with torch.no_grad():
                dict(loop.twin.named_parameters())["0.weight"].fill_(math.nan)
        loop.step(inputs, targets, by=1e5 if AT < step <= AT + 10 else 1.0)
    done = {remedy for _, _, remedies in loop.incidents for remedy in remedies}
    assert {"reinitialize", "rollback"} <= done
    assert finite(loop)


@pytest.mark.parametrize("home", [lambda name: "cuda:1" if name.startswith("3") else "cuda:0"])
def test_parameters_on_two_devices(home: object) -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW foreach"], device=home)  # type: ignore[arg-type]
    for step, (inputs, targets) in enumerate(batches(AT + 10)):
        if step == AT:
            inputs[0, 0] = math.nan
        loop.step(inputs, targets)
    assert loop.incidents == [(AT, "non-finite", ("skip",))]
    assert finite(loop)


def test_a_nan_on_a_device_without_float64() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW foreach"], device="mps:0")
    for step, (inputs, targets) in enumerate(batches(AT)):
        if step == AT - 5:
            inputs[0, 0] = math.nan
        loop.step(inputs, targets)
    assert loop.incidents == [(AT - 5, "non-finite", ("skip",))]


def test_state_that_was_written_to_on_a_device_without_float64() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW foreach"], device="mps:0")
    for step, (inputs, targets) in enumerate(batches(AT)):
        if step == AT - 5:
            for state in loop.optimizer.state.values():
                for _ in range(4):
                    state["exp_avg"].mul_(1e9)
        loop.step(inputs, targets)
    assert loop.incidents


def test_a_large_layer_on_a_device_without_float64() -> None:
    net, _ = moved(nn.Sequential(nn.Linear(2048, 1100)), "mps:0")
    store = SnapshotStore()
    store.take(0, dict(net.named_parameters()), {}, torch.optim.SGD(net.parameters(), lr=0.1))
    assert len(examine(net, store.latest)) == 1
    norms, bad = examine_gradients([far(torch.full((3,), 1e30), "mps:0")])
    assert norms[0] == pytest.approx(3**0.5 * 1e30)
    assert bad == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["AdamW fused", "SGD foreach"])
def test_halves(kind: str, dtype: torch.dtype) -> None:
    make = OPTIMIZERS[kind]
    make = partial(make.func, **{**make.keywords, "lr": 1e-3})  # type: ignore[attr-defined]
    loop = Loop(network().to(dtype), make)
    for step, (inputs, targets) in enumerate(batches(AT + 10)):
        if step == AT:
            inputs[0, 0] = math.nan
        loop.step(inputs.to(dtype), targets.to(dtype))
    assert loop.incidents == [(AT, "non-finite", ("skip",))]
    assert loop.left >= 15
    assert finite(loop)


def test_histograms_under_deterministic_algorithms() -> None:
    grads = [far(torch.randn(50)), far(torch.randn(3, 3).bfloat16())]
    torch.use_deterministic_algorithms(True)
    try:
        assert count(grads).sum(1).tolist() == [50.0, 9.0]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_histograms_where_the_default_dtype_is_narrow() -> None:
    torch.set_default_dtype(torch.float16)
    try:
        assert count([torch.ones(5000, dtype=torch.float32)]).sum() == 5000
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_transform_draws_on_no_gpu_but_that_of_the_batch() -> None:
    seen = []
    augment = Augment(transform=lambda batch: seen.append(set(DEVICE.seeded)) or batch)
    augment._left = 1
    seeded = []
    with (
        mock.patch.object(torch.cuda, "device_count", return_value=8),
        mock.patch.object(torch.cuda, "manual_seed", seeded.append),
    ):
        augment.before_forward([far(torch.ones(4, 2), "cuda:1")])
    assert seen == [{1}]
    assert len(seeded) == 1


def test_no_memory_to_examine_the_state_of_the_optimizer() -> None:
    net, _ = moved(network())
    optimizer = OPTIMIZERS["AdamW foreach"](net.parameters())
    for p in net.parameters():
        p.grad = far(torch.ones_like(near(p)))
    optimizer.step()
    optimizer.state[next(net.parameters())]["exp_avg"] = far(torch.ones(8, 8).t()[:4])
    DEVICE.memory = 2
    with pytest.warns(RuntimeWarning, match="no memory"):
        assert spoilt(optimizer, dict(net.named_parameters()), None, 1.0) is None


@pytest.mark.parametrize("kind", ["AdamW fused", "SGD fused"])
@pytest.mark.parametrize("bound", [None, 1e-3, 10.0])
def test_what_others_clip_before_the_update_is_not_divided_twice(kind: str, bound: float | None) -> None:
    """A spike's update is as long as where the host clips it, to within rounding."""
    moves = []
    # Rate and spike make an update of more than a tenth of the weights: a smaller one does no harm, and is let through.
    rate, by = {"AdamW fused": (0.2, 200.0), "SGD fused": (0.01, 60.0)}[kind]
    for home in ("cuda:0", "cpu"):
        loop = Loop(network(), partial(OPTIMIZERS[kind], lr=rate), device=home)
        for step, (inputs, targets) in enumerate(batches(AT + 1)):
            before = loop.weights
            loop.step(inputs, targets, by=by if step == AT else 1.0, clip=bound)
        loop.guard.flush()
        assert loop.incidents == [(AT, "sudden", ("clip",))]
        moves.append(math.hypot(*(float((b - a).norm()) for a, b in zip(before, loop.weights, strict=True))))
    assert moves[0] == pytest.approx(moves[1], rel=1e-3)


@pytest.mark.parametrize("kind", ["AdamW fused", "AdamW foreach", "SGD fused"])
def test_a_spike_whose_update_leaves_the_weights_nearly_as_they_are_is_let_through(kind: str) -> None:
    """On the device as on the host: the run ends as without a guard, to the last bit."""
    rate = {"SGD fused": 1e-3}.get(kind, 1e-2)
    for home in ("cuda:0", "cpu"):
        weights = []
        for mode in ("guard", "watch"):
            loop = Loop(network(), partial(OPTIMIZERS[kind], lr=rate), device=home, mode=mode)
            for step, (inputs, targets) in enumerate(batches(AT + 20)):
                loop.step(inputs, targets, by=40.0 if step == AT else 1.0)
            loop.guard.flush()
            assert loop.incidents == []
            weights.append(loop.weights)
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
