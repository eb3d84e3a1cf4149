"""The gate: what it does to gradients, and what it sends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.device_gate import Bounds, DeviceGate, Flight

ANY = Bounds(math.inf, 1.0, 10.0)


def test_every_bit_of_a_healthy_gradient_is_kept() -> None:
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4e38, 1.0000001])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        network = nn.Linear(1, 6, bias=False).to(dtype)
        grad = odd.clamp(-6e4, 6e4).to(dtype).reshape(6, 1)
        network.weight.grad = grad.clone()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        DeviceGate().judge(optimizer, [network.weight.grad], ANY, act=True)
        word = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(network.weight.grad.view(word), grad.view(word))


def test_what_is_kept_on_the_device_is_small() -> None:
    # Per tensor one number on its way to the host; nothing else grows with the tensors.
    network = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(1000)])
    for p in network:
        p.grad = torch.ones(4)
    gate = DeviceGate()
    optimizer = torch.optim.SGD(network.parameters())
    gate.send(gate.judge(optimizer, [p.grad for p in network], Bounds(1e9, 1.0, 10.0), act=True))
    assert gate._pinned is not None and gate._pinned.nbytes < 1e6
    kept = [v for v in vars(gate).values() if isinstance(v, Tensor)]
    assert sum(v.nbytes for v in kept) < 1e6


@pytest.mark.parametrize("act", [True, False])
def test_a_bad_step_becomes_one_without_a_gradient_unless_the_guard_only_watches(act: bool) -> None:
    grad = torch.tensor([math.nan, 1.0])
    judged = DeviceGate().judge(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), [grad], ANY, act=act)
    assert bool(judged.made) is not act
    assert (grad == 0.0).all() if act else grad[1] == 1.0


def test_what_was_sent_is_read_once() -> None:
    gate, grad = DeviceGate(), torch.tensor([3.0, 4.0])
    judged = gate.judge(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), [grad], ANY, act=True)
    flight = Flight(7, ("w",), None, 0.1, 3)
    gate.send(judged, loss=torch.tensor(2.0), peaks=[torch.tensor(9.0)], flight=flight)
    assert gate.waiting
    reading = gate.collect()
    assert reading is not None and reading.norms.tolist() == [5.0]
    assert (reading.coefficient, reading.loss, reading.peaks, reading.flight) == (1.0, 2.0, (9.0,), flight)
    assert gate.collect() is None and not gate.waiting
