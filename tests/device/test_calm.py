"""A calm run on a device: bit-identical to an unguarded one, judged there, and never waited for."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import SnapshotStore
from lightning_gradguard.arriving import Arriving
from lightning_gradguard.snapshots import copier
from tests.builders import same, through_a_file
from tests.device.machine import Waited
from tests.device.simulated import DEVICE, Device, Far, far, moved, near, simulated
from tests.device.training import CALM, OPTIMIZERS, TAKEN, Loop, batches, network


@pytest.fixture(autouse=True)
def device() -> Iterator[Device]:
    with simulated() as found:
        yield found


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_calm_run_is_left_to_the_device_and_ends_bit_identical(kind: str) -> None:
    guarded, plain = Loop(network(), OPTIMIZERS[kind]), Loop(network(), OPTIMIZERS[kind], guarded=False)
    for loop in (guarded, plain):
        loop.run(TAKEN + 10)
    assert guarded.left >= 40
    assert guarded.incidents == []
    assert all(map(torch.equal, guarded.weights, plain.weights))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_calm_step_waits_for_nothing(kind: str) -> None:
    loop = Loop(network(), OPTIMIZERS[kind])
    for step, (inputs, targets) in enumerate(batches(TAKEN)):
        loop.step(inputs, targets, strict=step >= CALM and not loop.track.snapshots.due(step))
    assert loop.left >= TAKEN - CALM - 2


def test_a_snapshot_is_copied_without_a_wait_of_its_own() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW fused"])
    loop.run(TAKEN + 2)
    assert any(loop.waits[TAKEN])  # The host judges that step, and waits for its norms.
    assert not any("copy" in why for why in loop.waits[TAKEN])


def test_the_simulation_is_strict() -> None:
    a, b = far(torch.ones(2)), far(torch.ones(2), "cuda:1")
    with pytest.raises(RuntimeError, match="same device"):
        _ = a + b
    with pytest.raises(RuntimeError, match="same device"):
        _ = a + torch.ones(2)
    with pytest.raises(TypeError, match="float64"):
        far(torch.ones(2), "mps:0").double()
    pinned = torch.empty(2, pin_memory=True)
    pinned.copy_(a, non_blocking=True)
    assert pinned.isnan().all()
    torch.cuda.current_stream().record_event().synchronize()
    assert pinned.tolist() == [1.0, 1.0]
    assert DEVICE.waits == []
    _ = a.cpu(), a.sum().item()
    assert DEVICE.waits == ["to the host", "item"]
    DEVICE.strict = True
    with pytest.raises(Waited, match="item"):
        a.sum().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_is_no_concern_of_the_guard(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        net = network().float()
        loop = Loop(net, partial(torch.optim.SGD, lr=1e-7))
        for inputs, targets in batches(60):
            loop.step(inputs.float(), targets.float(), by=1e5)
        assert 7e4 < loop.track.last.norms.max() < math.inf
        assert loop.left >= 20
        assert loop.incidents == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_events_of_snapshots_that_nobody_asks_for_do_not_pile_up() -> None:
    net, _ = moved(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    store = SnapshotStore()
    for step in range(100):
        store.take(step, dict(net.named_parameters()), dict(net.named_buffers()), optimizer)
    assert len(store._copier._coming) == 1


def ahead(loop: Loop) -> list[Tensor]:
    """Train up to a step at which a snapshot is taken in a calm run; return the weights before it."""
    made = iter(batches(200))
    for _ in range(60):
        loop.step(*next(made))
    due = loop.track.snapshots.schedule.due
    for _ in range(60, due):
        loop.step(*next(made))
    before = loop.weights
    loop.step(*next(made))
    assert loop.track.snapshots._kept[-1].step == due
    return before


@pytest.mark.parametrize("kind", ["AdamW fused", "AdamW foreach", "SGD foreach", "Adam capturable"])
def test_a_snapshot_is_copied_beside_the_batch_and_the_update_waits_for_it(kind: str) -> None:
    loop = Loop(network(), OPTIMIZERS[kind])
    before = ahead(loop)
    assert loop.track.snapshots._copier._streams, "a stream of its own"
    assert not same(loop.weights, before)
    assert same(list(loop.track.snapshots.latest.parameters.values()), before)  # type: ignore[union-attr]


def test_what_is_written_to_after_the_copy_was_begun_is_copied_again() -> None:
    loop = Loop(network(), OPTIMIZERS["SGD foreach"])
    store = loop.track.snapshots

    def begin(*args: Any) -> None:
        SnapshotStore.begin(store, *args)
        with torch.no_grad():
            next(loop.module.parameters()).mul_(2.0)

    store.begin = begin  # type: ignore[method-assign]
    before = ahead(loop)
    before[0] *= 2.0
    assert same(list(store.latest.parameters.values()), before)  # type: ignore[union-attr]


def test_memory_of_copies_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    room = copier._room

    def counted(value: Tensor) -> Tensor:
        made.append(room(value))
        return made[-1]

    monkeypatch.setattr(copier, "_room", counted)
    loop = Loop(network(), OPTIMIZERS["AdamW fused"], snapshots=SnapshotStore(every=20))
    for step, (inputs, targets) in enumerate(batches(200)):
        if step == 140:
            taken = loop.track.snapshots.schedule.taken
            assert made
            made.clear()
        loop.step(inputs, targets)
    assert loop.track.snapshots.schedule.taken >= taken + 40
    assert made == []


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.ones(4))


def test_buffers_on_another_device_than_the_parameters_have_arrived_when_they_are_read() -> None:
    net, _ = moved(Scaled(), lambda name: "cpu" if name == "weight" else "cuda:0")
    store = SnapshotStore()
    store.take(0, dict(net.named_parameters()), dict(net.named_buffers()), torch.optim.SGD(net.parameters(), lr=0.1))
    assert store.latest is not None
    assert torch.equal(store.latest.buffers["mean"], torch.ones(4))


def test_a_guard_can_be_copied_in_mid_run() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW fused"])
    loop.run(60)
    assert loop.track.gate.waiting
    taken = copy.deepcopy((loop.track.gate, loop.track.snapshots))
    gate, snapshots = taken
    assert np.array_equal(gate.collect().norms, loop.track.gate.collect().norms)
    assert snapshots.latest is not None
    assert same(snapshots.latest.parameters, loop.track.snapshots.latest.parameters)


def test_a_guard_can_be_copied_after_any_step() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW fused"])
    for inputs, targets in batches(60):
        loop.step(inputs, targets)
        copied = copy.deepcopy(loop.guard)
    assert same(copied.state_dict(), loop.guard.state_dict())


def test_what_was_copied_in_mid_run_does_not_wait_either() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW fused"])
    loop.run(60)
    loop.track.gate, loop.track.snapshots = copy.deepcopy((loop.track.gate, loop.track.snapshots))
    for inputs, targets in list(batches(TAKEN))[60:]:
        loop.step(inputs, targets, strict=True)
    loop.run(2)
    assert not any("copy" in why for why in loop.waits[TAKEN])


def test_a_checkpoint_is_whole_and_a_resumed_run_is_left_to_the_device() -> None:
    first = Loop(network(), OPTIMIZERS["AdamW fused"])
    first.run(60)
    state = first.guard.state_dict()
    tensors = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, Tensor)]
    assert not any(isinstance(t, Far) for t in tensors)
    assert not any(bool(t.isnan().any()) for t in tensors if t.is_floating_point())
    second = Loop(network(), OPTIMIZERS["AdamW fused"])
    second.guard.load_state_dict(through_a_file(state))
    second.run(120)
    assert second.left > 80
    assert not any("copy" in why for waits in second.waits for why in waits)


def test_a_rate_in_a_tensor_of_the_device_costs_no_wait() -> None:
    def capturable(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=far(torch.tensor(1e-2)), capturable=True, foreach=True)

    loop = Loop(network(), capturable)
    for step, (inputs, targets) in enumerate(batches(TAKEN)):
        loop.step(inputs, targets, strict=step >= CALM)
    assert loop.left >= TAKEN - CALM


@pytest.mark.parametrize("rising", [False, True])
def test_a_scheduler_that_writes_to_such_a_rate_costs_no_wait_either(rising: bool) -> None:
    def capturable(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=far(torch.tensor(1e-2)), capturable=True, foreach=True)

    def rate(step: int) -> float:
        return 1e-3 + 1e-5 * step if rising else 1e-2 - 1e-5 * step

    loop, calm = Loop(network(), capturable), 0
    for step, (inputs, targets) in enumerate(batches(TAKEN)):
        loop.optimizer.param_groups[0]["lr"].fill_(rate(step))
        after_another = loop.track.gate.waiting
        loop.step(inputs, targets)
        if step >= CALM and after_another and loop.track.gate.waiting:
            assert loop.waits[step] == []
            assert loop.track.last.rate == pytest.approx(rate(step - 2), rel=0.02)
            calm += 1
    # A rate that rises has the host measure an update now and then.
    assert calm >= (0.6 if rising else 1.0) * (TAKEN - CALM)


def test_numbers_on_their_way_are_awaited_on_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current, asked = torch.cuda.current_stream, []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: asked.append(device) or current(device))
    assert Arriving(far(torch.ones(2), "cuda:1")).read().tolist() == [1.0, 1.0]
    assert asked == [torch.device("cuda:1")]


def test_nothing_is_left_on_the_optimizer() -> None:
    loop = Loop(network(), OPTIMIZERS["AdamW fused"])
    loop.run(60)
    assert not {"grad_scale", "found_inf"} & set(vars(loop.optimizer))
    assert near(loop.weights[0]).isfinite().all()
