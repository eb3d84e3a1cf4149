"""A GradScaler on a device: calm steps are judged late there too, and what overflows is the scaler's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from tests.builders import same
from tests.device.simulated import DEVICE, Device, Far, far, moved, near, simulated
from tests.device.training import CALM, OPTIMIZERS, batches, network

AT = CALM + 10
KINDS = ["AdamW foreach", "AdamW fused", "SGD foreach", "SGD fused"]


@pytest.fixture(autouse=True)
def device() -> Iterator[Device]:
    with (
        simulated() as found,
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
    ):
        yield found


class Scaled:
    """A loop of mixed precision, whose gradients a fused optimizer finds as they are scaled."""

    def __init__(self, kind: str, *, guarded: bool = True) -> None:
        self.module, self.twin = moved(network())
        self.optimizer = OPTIMIZERS[kind](self.module.parameters())
        self.scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
        self.guard = Guard(self.module)
        self.guarded, self.left = guarded, 0
        self.waits: list[list[str]] = []

    def step(self, inputs: Tensor, targets: Tensor, by: float = 1.0) -> None:
        self.optimizer.zero_grad()
        self.twin.zero_grad()
        loss = nn.functional.mse_loss(self.twin(inputs), targets) * by
        scaled = self.scaler.scale(far(loss.detach()))
        (loss * (near(scaled) / loss.detach())).backward()
        for mine, other in zip(self.module.parameters(), self.twin.parameters(), strict=True):
            mine.grad = Far(other.grad, mine.device)
        before = len(DEVICE.waits)
        if not getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.scaler.unscale_(self.optimizer)
        if self.guarded:
            batch = far(inputs), far(targets)
            self.guard.before_step(self.optimizer, loss=far(loss.detach()), batch=batch, scaler=self.scaler)
            self.left += self.guard.attach(self.optimizer).gate.waiting
        self.scaler.step(self.optimizer)
        self.waits.append(DEVICE.waits[before:])
        self.scaler.update()

    @property
    def end(self) -> list[Tensor]:
        return [near(p).detach().clone() for p in self.module.parameters()]

    @property
    def scale(self) -> float:
        return float(near(self.scaler._scale))


def train(kind: str, *, guarded: bool = True, spoil: Any = None, count: int = AT + 15) -> Scaled:
    loop = Scaled(kind, guarded=guarded)
    for step, (inputs, targets) in enumerate(batches(count)):
        if step == AT and spoil is not None:
            inputs, targets = spoil(inputs, targets)
        loop.step(inputs, targets)
    return loop


@pytest.mark.parametrize("kind", KINDS)
def test_a_calm_step_waits_for_no_more_than_the_scaler_does_and_is_bit_identical(kind: str) -> None:
    guarded, plain = train(kind), train(kind, guarded=False)
    assert guarded.left >= 20 and not guarded.guard.incidents
    assert same(guarded.end, plain.end)
    assert guarded.waits[AT] == plain.waits[AT] == ([] if "fused" in kind else ["item"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_is_left_to_the_scaler(kind: str) -> None:
    def overflow(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs * math.nan, targets

    guarded, plain = train(kind, spoil=overflow), train(kind, spoil=overflow, guarded=False)
    assert not guarded.guard.incidents
    assert guarded.scale == plain.scale == 32.0
    assert same(guarded.end, plain.end)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_finite_and_far_too_large_is_skipped_on_the_device(kind: str) -> None:
    loop = train(kind, spoil=lambda inputs, targets: (inputs, targets * 1e4), count=AT + 2)
    incident = loop.guard.incidents[0]
    assert (incident.step, incident.form, incident.remedies) == (AT, "sudden", ("skip",))
    assert "on the device" in incident.actions[0].outcomes[0].detail
    assert loop.scale == 64.0
