"""A bad start is repaired as a whole, by the signal that goes through the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.remedies import Initialize
from tests.builders import context_for, same


def linear(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))]


def outputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output of each linear layer and convolution."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, i, o: seen.append(o.detach())) for layer in linear(net)]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def initialise(net: nn.Module, x: Any, *, mean: Any = None, optimizer: Any = None) -> str:
    """Draw anew and scale by one batch, with the backward pass that the user's loop makes; return what was said."""
    remedy = Initialize()
    outcome = remedy.apply(context_for(net, optimizer))
    assert outcome.applied and remedy.at_work, outcome.detail
    net(x).square().mean().backward()
    told = remedy.finish(mean)
    net.zero_grad()
    assert not remedy.at_work
    return told


def spoil(net: nn.Module, how: Callable[[Tensor], object]) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                how(p)
    return net


def deep(activation: Callable[[], nn.Module], depth: int = 30, width: int = 48) -> nn.Sequential:
    body = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(nn.Linear(20, width), activation(), *body, nn.Linear(width, 3))


class Residual(nn.Module):
    """Branches that add up, without a normalisation."""

    def __init__(self, depth: int = 12, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(20, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, groups=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "pixels": (lambda: deep(nn.ReLU, 2), lambda: torch.randint(256, (32, 20)).float()),
    "tiny inputs": (lambda: deep(nn.ReLU, 2), lambda: 1e-4 * torch.randn(32, 20)),
    "deep relu": (lambda: deep(nn.ReLU), lambda: torch.randn(32, 20)),
    "deep sigmoid": (lambda: deep(nn.Sigmoid), lambda: torch.randn(32, 20)),
    "deep tanh": (lambda: deep(nn.Tanh), lambda: torch.randn(32, 20)),
    "residual": (Residual, lambda: torch.randn(32, 20)),
    "convolutions": (convolutions, lambda: torch.randn(32, 3, 9, 9)),
    "small batch": (lambda: deep(nn.ReLU), lambda: torch.randn(4, 20)),
    "sequences": (lambda: deep(nn.GELU, 4), lambda: torch.randn(16, 7, 20)),
}
SPOILT: dict[str, Callable[[Tensor], object]] = {
    "huge": lambda w: w.mul_(1e4),
    "tiny": lambda w: w.mul_(1e-4),
    "alike": lambda w: w.fill_(0.5),
    "nan": lambda w: w.fill_(torch.nan),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", CASES)
def test_every_layers_output_is_of_the_order_of_one_and_differs_from_sample_to_sample(name: str, how: str) -> None:
    make, data = CASES[name]
    net, x = make(), data()
    with torch.no_grad():
        net(x)  # lazy layers
    spoil(net, SPOILT[how])
    initialise(net, x)
    seen = outputs(net, x)
    assert len(seen) == len(linear(net))
    for number, output in enumerate(seen):
        assert float(output.std()) == pytest.approx(1.0, abs=0.15), number
        apart = (output - output.mean(0)).square().mean().sqrt()
        assert float(apart / output.square().mean().sqrt()) > 0.05, number


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_reaches_the_first_layer_in_the_size_it_left_the_last(name: str) -> None:
    make, data = CASES[name]
    net, x = make(), data()
    with torch.no_grad():
        net(x)
    spoil(net, SPOILT["huge"])
    initialise(net, x)
    sizes: list[float] = []
    for layer in linear(net):
        layer.register_full_backward_hook(lambda m, i, o: sizes.append(float(o[0].norm())))
    net(x.requires_grad_()).sum().backward()
    assert 1e-2 < sizes[-1] / sizes[0] < 1e3


def test_a_network_that_is_drawn_once_more_says_less() -> None:
    """An exponential behind it could not take outputs of 1."""
    net, x = deep(nn.ReLU, depth=4), torch.randn(64, 20)
    remedy, deviations = Initialize(), []
    for _ in range(2):
        remedy.apply(context_for(net))
        net(x)
        remedy.finish()
        deviations.append([float(output.std()) for output in outputs(net, x)])
        state = remedy.state_dict()
        remedy = Initialize()
        remedy.load_state_dict(state)
    assert deviations[0] == pytest.approx([1.0] * 6, rel=1e-2)
    assert deviations[1] == pytest.approx([0.1] * 6, rel=1e-2)


def test_what_the_next_layer_sees_in_the_batch_of_measuring_is_what_the_weights_will_give() -> None:
    net, x = deep(nn.Tanh, 4), torch.randn(32, 20)
    remedy = Initialize()
    remedy.apply(context_for(net))
    during = net(x).detach()
    remedy.finish()
    torch.testing.assert_close(net(x).detach(), during, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pixels", "tiny inputs", "deep relu"])
def test_inputs_of_an_odd_scale_are_named(name: str) -> None:
    make, data = CASES[name]
    told = initialise(make(), data())
    assert ("standardise" in told) is (name != "deep relu")


def test_a_network_that_was_lost_in_its_depth_learns() -> None:
    net, generator = spoil(deep(nn.ReLU, 8), SPOILT["huge"]), torch.Generator().manual_seed(0)
    x = torch.randn(64, 20, generator=generator)
    y = x[:, :3].tanh()
    initialise(net, x)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


# -- what is left alone


class Tied(nn.Module):
    """An embedding whose weight is the head's too, and a branch that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12)
        self.head.weight = self.embed.weight
        self.gate = nn.Linear(16, 16)
        nn.init.zeros_(self.gate.weight)
        self.norm, self.mine = nn.LayerNorm(16), nn.Parameter(torch.full((16, 16), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.body(self.embed(x)))
        return self.head(h + self.gate(h) @ self.mine)


def test_shared_zero_and_custom_weights_are_left_alone() -> None:
    net = Tied()
    before = copy.deepcopy(net.state_dict())
    initialise(net, torch.randint(12, (32, 5)))
    after = net.state_dict()
    for name in ("embed.weight", "gate.weight", "mine"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["body.weight"], after["body.weight"])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "hide", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm], ids=["pruned", "normed"]
)
def test_a_weight_that_is_no_parameter_is_no_trouble(hide: Any, when: str) -> None:
    net, remedy = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 3)), Initialize()
    if when == "before":
        hide(net[0])
    assert remedy.apply(context_for(net)).applied
    if when == "after":
        hide(net[0])
    net(torch.randn(64, 20)).square().mean().backward()
    assert remedy.finish().startswith("1 layers scaled") and all(p.isfinite().all() for p in net.parameters())


def test_what_the_optimizer_does_not_train_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    frozen = copy.deepcopy(net[0].state_dict())
    context = context_for(net)
    context.parameters = {name: p for name, p in context.parameters.items() if name.startswith("1.")}
    remedy = Initialize()
    assert remedy.apply(context).layers == ("1",)
    net(torch.randn(16, 4))
    remedy.finish()
    assert same(frozen, dict(net[0].state_dict()))


def test_where_no_layer_is_of_a_known_kind_nothing_is_done() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    net, remedy = Own(), Initialize()
    assert not remedy.apply(context_for(net)).applied and not remedy.at_work
    assert bool((net.weight == 1.0).all())


def test_running_statistics_and_the_optimizers_memory_begin_anew() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters())
    net(1e6 * torch.randn(16, 4)).sum().backward()
    optimizer.step()
    remedy = Initialize()
    remedy.apply(context_for(net, optimizer))
    assert float(net[1].running_var.max()) == 1.0 and not optimizer.state


def test_padding_stays_zero() -> None:
    net = nn.Sequential(nn.Embedding(9, 8, padding_idx=3), nn.Flatten(), nn.Linear(16, 2))
    initialise(net, torch.randint(9, (32, 2)))
    assert not bool(net[0].weight[3].any()) and bool(net[0].weight[2].any())


# -- the batch of measuring


@pytest.mark.parametrize("name", CASES)
def test_draws_are_the_same_every_time_and_leave_the_users_stream_alone(name: str) -> None:
    make, data = CASES[name]
    net, x = make(), data()
    with torch.no_grad():
        net(x)
    other = copy.deepcopy(net)
    state = torch.get_rng_state()
    initialise(net, x)
    assert torch.equal(state, torch.get_rng_state())
    initialise(other, x)
    assert same(dict(net.state_dict()), dict(other.state_dict()))


def test_a_validation_in_between_measures_nothing() -> None:
    net, remedy = deep(nn.ReLU, 2), Initialize()
    remedy.apply(context_for(net))
    drawn = copy.deepcopy(net.state_dict())
    net.eval()(torch.randn(8, 20))
    assert same(drawn, dict(net.state_dict())) and remedy.at_work
    net.train()(torch.randn(32, 20))
    assert remedy.finish().startswith("4 layers")


def test_a_layer_that_is_called_twice_is_scaled_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))

    net, x = Twice(), torch.randn(64, 16)
    initialise(net, x)
    assert float(net.layer(x).detach().std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_corrupt_batch_scales_nothing(value: float) -> None:
    net, x = deep(nn.ReLU, 2), torch.randn(32, 20)
    x[3] = value
    told = initialise(net, x)
    assert "no forward pass could be measured" in told
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_batch_of_one_does_no_harm() -> None:
    net = deep(nn.ReLU, 2)
    initialise(net, torch.randn(1, 20))
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_finds_in_the_backward_pass_what_was_there_in_the_forward_pass(
    reentrant: bool,
) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(20, 20), deep(nn.ReLU, 2), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, self.stem(x), use_reentrant=reentrant))

    net, x = Checkpointed(), torch.randn(32, 20)
    initialise(net, x)
    assert [float(o.std()) for o in outputs(net, x)] == pytest.approx([1.0] * 6, abs=0.15)


def test_two_processes_that_see_different_batches_agree() -> None:
    nets = [deep(nn.Sigmoid, 3), deep(nn.Sigmoid, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    remedies = [Initialize(), Initialize()]
    for net, remedy, scale in zip(nets, remedies, (1.0, 3.0), strict=True):
        remedy.apply(context_for(net))
        net(scale * torch.randn(32, 20))
    told: list[list[float]] = []
    for remedy in copy.copy(remedies):  # what each has measured, before anything is changed
        done = list(remedy._scaled.values())
        told.append([v for one in done for v in (*one.scale.log().tolist(), *one.bias.tolist())])
    mean = [(a + b) / 2 for a, b in zip(*told, strict=True)]
    for remedy, mine in zip(remedies, told, strict=True):

        def agree(numbers: list[float], mine: list[float] = mine) -> list[float]:
            assert numbers == mine
            return mean

        remedy.finish(agree)
    assert told[0] != told[1]
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# -- under the guard


def test_the_step_of_the_batch_of_measuring_is_skipped_and_the_run_goes_on() -> None:
    torch.manual_seed(0)
    net = spoil(deep(nn.ReLU, 6), SPOILT["huge"])
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    guard = Guard(net)
    guard.attach(optimizer)
    reports, losses = [], []
    for _ in range(120):
        x = torch.randn(64, 20)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), x[:, :3])
        loss.backward()
        reports.append(guard.before_step(optimizer, loss=loss, batch=x))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert any(r.verdict is not None and r.verdict.detector == "initialize" and r.skipped for r in reports)
    assert losses[-1] < 2.0 < losses[0]
    assert not any(layer._forward_hooks for layer in linear(net))


def test_closing_the_guard_takes_the_hooks_off() -> None:
    net = deep(nn.ReLU, 2)
    guard = Guard(net, snapshots=SnapshotStore())
    track = guard.attach(torch.optim.SGD(net.parameters(), 0.01))
    assert track.remedies["initialize"].apply(context_for(net)).applied
    drawn = copy.deepcopy(net.state_dict())
    guard.close()
    net(torch.randn(32, 20))
    assert same(drawn, dict(net.state_dict()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, partial(nn.RNN, nonlinearity="relu")])
def test_recurrent_layers_get_the_initialisation_that_fits_them(kind: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = kind(8, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0])

    net = spoil(Net(), SPOILT["huge"])
    initialise(net, torch.randn(10, 32, 8))
    assert max(float(p.detach().abs().max()) for p in net.body.parameters()) < 3.0
    assert float(net(torch.randn(10, 32, 8)).detach().std()) == pytest.approx(1.0, abs=0.3)
