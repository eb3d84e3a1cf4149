"""A function between layers, or the loss itself, that makes finite numbers inf or NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard, default_remedies
from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.diagnostics import wording
from lightning_gradguard.policy.ladder import START
from lightning_gradguard.remedies import Remedy, Skip, SwapActivation
from tests.builders import context_for


class Power(nn.Module):
    """Overflow at inputs that are not large."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x.square() * 1e3)


class Cube(nn.Module):
    """Blow the signal up until one of its kind overflows, which was given too much to be the only one at fault."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3


def told(net: nn.Module, loss: Callable[[Tensor], Tensor], *, steps: int = 4) -> tuple[str | None, str, str]:
    """Train under the guard; return the first suspect, what it is, and the cause that was named last."""
    guard = trained(net, lambda x: loss(net(x)), Skip(), steps=steps)
    incident = guard.incidents[0]
    return incident.culprit, incident.blame[0].part if incident.blame else "", incident.actions[-1].decision.cause


def trained(net: nn.Module, loss: Callable[[Tensor], Tensor], *remedies: Remedy, steps: int) -> Guard:
    torch.manual_seed(0)
    guard = Guard(net, sinks=(), remedies=remedies)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(torch.randn(16, 4))
        value.backward()
        guard.before_step(optimizer, loss=value)
        optimizer.step()
        guard.after_step()
    return guard


def deep(act: type[nn.Module], depth: int = 5, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [part for _ in range(depth - 1) for part in (act(), nn.Linear(width, width))]
    return nn.Sequential(nn.Linear(4, width), *parts, act(), nn.Linear(width, 1))


def net(*act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *act, nn.Linear(8, 1))


def test_an_activation_that_overflows_is_named() -> None:
    assert told(net(Power()), lambda y: y.square().mean()) == ("1", "activation", "activation")


def test_a_function_that_blows_the_signal_up_is_named_though_the_next_one_overflows() -> None:
    whole = deep(Cube)
    guard = trained(whole, lambda x: whole(x * 9.0).square().mean(), Skip(), steps=4)
    [incident] = guard.incidents
    assert incident.actions[-1].decision.cause == "activation" and incident.culprit == "3"
    assert {suspect.kind for suspect in incident.blame} == {"Cube"}


def test_an_activation_is_swapped_once_it_was_seen_to_overflow_and_the_cause_stays_what_it_was() -> None:
    whole = deep(Cube)
    guard = trained(whole, lambda x: whole(x * 9.0).square().mean(), *default_remedies(), SwapActivation(), steps=60)
    causes = [trial.cause for incident in guard.incidents for trial in incident.trials]
    assert causes and set(causes) == {"activation"}
    swapped = [i for i, part in enumerate(whole) if isinstance(part, nn.Softsign)]
    assert guard.incidents[0].culprit == str(swapped[0]) and len(swapped) == 1


def test_a_function_is_told_with_its_type() -> None:
    whole = net(Power())
    guard = trained(whole, lambda x: whole(x).square().mean(), Skip(), steps=3)
    assert wording.named(guard.incidents[0].blame[0]) == "1 Power"
    assert guard.incidents[0].where() == ", first in 1 Power"


def test_a_model_that_the_loss_calls_more_than_once_is_innocent_of_its_nan() -> None:
    whole = deep(nn.ReLU)

    def loss(x: Tensor) -> Tensor:
        return whole(x).square().mean() + (whole(x) - whole(x)).square().sum(1).sqrt().mean()

    guard = trained(whole, loss, *default_remedies(), steps=60)
    [incident] = guard.incidents
    assert incident.culprit == "loss function" and incident.actions[-1].decision.cause == "loss"
    assert [trial.cause for trial in incident.trials] == ["loss"] * len(START[Cause.LOSS])


def test_a_loss_that_is_nan_now_and_then_is_named() -> None:
    whole, steps = net(nn.ReLU()), iter(range(200))

    def loss(x: Tensor) -> Tensor:
        value = (whole(x) - x.sum(1, keepdim=True)).square().mean()
        step = next(steps)
        return value * (0.0 * value).log() if step > 60 and step % 7 == 0 else value

    guard = trained(whole, loss, *default_remedies(), steps=100)
    [incident] = guard.incidents
    assert incident.culprit == "loss function" and incident.actions[-1].decision.cause == "loss"
    assert incident.remedies == ("skip",)


def test_of_averaged_gradients_nobody_knows_who_made_them_nan() -> None:
    from lightning_gradguard.attribution import Probe, blame
    from tests.builders import statistics

    whole = net(nn.ReLU())
    probe = Probe()
    probe.arm(whole)
    whole(torch.randn(16, 4)).mean().backward()
    probe.disarm()
    found = dataclasses.replace(statistics(math.nan), names=("0.weight",))
    assert [s.layer for s in blame(whole, readings=probe.readings(), statistics=found)] == ["0"]
    assert blame(whole, readings=probe.readings(), statistics=found, averaged=True) == ()


def test_a_function_behind_the_last_layer_belongs_to_the_loss() -> None:
    whole = nn.Sequential(nn.Linear(4, 1), Power())
    assert told(whole, lambda y: y.mean()) == ("1", "loss", "loss")


@pytest.mark.parametrize(
    "loss",
    [lambda y: (y * 0.0).log().mean(), lambda y: (y - y.detach()).square().sum().sqrt()],
    ids=["log of zero", "the slope of a root at zero"],
)
def test_a_loss_that_is_undefined_is_named_and_no_module(loss: Callable[[Tensor], Tensor]) -> None:
    assert told(net(nn.ReLU()), loss) == ("loss function", "loss", "loss")


def test_an_output_so_large_that_any_loss_overflows_accuses_no_loss() -> None:
    whole = net(nn.ReLU())
    with torch.no_grad():
        whole[0].weight.mul_(1e12)
        whole[2].weight.mul_(1e12)
    assert told(whole, lambda y: y.square().square().mean())[1] != "loss"


def test_what_was_seen_to_overflow_is_swapped() -> None:
    from lightning_gradguard.records import Suspect

    module = net(Power())
    accused = [Suspect("1", 44.0, "its output is not finite though its input is", part="activation")]
    outcome = SwapActivation(to="Tanh").apply(context_for(module, blame=accused))
    assert outcome.applied and isinstance(module[1], nn.Tanh)


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Tanh(), nn.Softmax(dim=-1)])
def test_looking_at_functions_changes_no_number(act: nn.Module) -> None:
    from lightning_gradguard.attribution.probe import Probe

    whole, data = net(act), torch.randn(16, 4)
    plain = whole(data)
    probe = Probe()
    probe.arm(whole, backward=False)
    assert torch.equal(whole(data), plain)
    probe.disarm()
    assert [(r.layer, r.kind) for r in probe.readings()] == [("0", "linear"), ("1", "function"), ("2", "linear")]
