"""A function between layers, or the loss itself, that makes finite numbers inf or NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.remedies import Skip, SwapActivation
from tests.builders import context_for


class Power(nn.Module):
    """Overflow at inputs that are not large."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x.square() * 1e3)


def told(net: nn.Module, loss: Callable[[Tensor], Tensor], *, steps: int = 4) -> tuple[str | None, str, str]:
    """Train under the guard; return the first suspect, what it is, and the cause that was named last."""
    torch.manual_seed(0)
    guard = Guard(net, sinks=(), remedies=[Skip()])
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(net(torch.randn(16, 4)))
        value.backward()
        guard.before_step(optimizer, loss=value)
        optimizer.step()
    incident = guard.incidents[0]
    return incident.culprit, incident.blame[0].part if incident.blame else "", incident.actions[-1].decision.cause


def net(*act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *act, nn.Linear(8, 1))


def test_an_activation_that_overflows_is_named() -> None:
    assert told(net(Power()), lambda y: y.square().mean()) == ("1", "activation", "activation")


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
