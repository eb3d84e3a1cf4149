"""Whether a run is fresh: only then may anything be drawn anew, so that the work of training is never mistaken for a
draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.attribution.freshness import drawn, untouched

# -- what counters and flags tell


def test_a_new_module_is_untouched_and_one_with_a_frozen_part_is_not() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    assert untouched(net, torch.optim.Adam(net.parameters()))
    net[0].requires_grad_(False)
    assert not untouched(net, torch.optim.Adam(net[2].parameters()))


def test_a_normalisation_that_has_counted_batches_has_been_trained() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 4))
    assert not untouched(net, torch.optim.SGD(net.parameters(), 0.1))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, partial(torch.optim.SGD, momentum=0.9)])
def test_an_optimizer_that_has_worked_speaks_for_itself(kind: Any) -> None:
    net = nn.Linear(4, 1)
    optimizer = kind(net.parameters(), lr=0.1)
    assert untouched(net, optimizer), "Adagrad makes its state before its first step"
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    assert not untouched(net, optimizer)


# -- what the weights tell


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(60, 32), kind(32, 48, num_layers=2), nn.Linear(48, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0])


def mlp(width: int = 64, depth: int = 3, inputs: int = 20, outputs: int = 10) -> nn.Sequential:
    sizes = [inputs, *[width] * depth]
    body = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(width, outputs))


def convolutions(inputs: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def transformer() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "wide": partial(mlp, 700, 1),
    "narrow": partial(mlp, 16, 6),
    "convolutions": convolutions,
    "lstm": partial(Recurrent, nn.LSTM),
    "gru": partial(Recurrent, nn.GRU),
    "rnn": partial(Recurrent, nn.RNN),
    "transformer": transformer,
    "attention": partial(nn.MultiheadAttention, 64, 4),
    "embedding": partial(nn.Embedding, 500, 64),
}
DRAWS: dict[str, Callable[[Tensor], object]] = {
    "as it comes": lambda w: None,
    "normal": nn.init.normal_,
    "uniform": nn.init.uniform_,
    "kaiming": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_uniform_,
    "truncated": partial(nn.init.trunc_normal_, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "sparse": lambda w: nn.init.sparse_(w, 0.5) if w.dim() == 2 else nn.init.normal_(w),
    "laplace": lambda w: w.copy_(torch.distributions.Laplace(0.0, 1.0).sample(w.shape)),
    "one and all": lambda w: nn.init.constant_(w, 0.3),
    "off centre": lambda w: nn.init.normal_(w, 2.0, 0.1),
}


@torch.no_grad()
def draw(net: nn.Module, how: str, scale: float = 1.0) -> nn.Module:
    for weight in net.parameters():
        if weight.dim() > 1:
            DRAWS[how](weight)
            weight.mul_(scale)
    return net


@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_looks_drawn_at_any_scale(name: str, how: str) -> None:
    for seed, scale in enumerate((1.0, 1e-6, 1e3, 30.0)):
        torch.manual_seed(seed)
        assert drawn(draw(NETWORKS[name](), how, scale).parameters()), (seed, scale)


def test_one_layer_that_a_fault_has_struck_does_not_hide_the_draws_of_the_others() -> None:
    for fault in (lambda w: w[0].mul_(1e3), lambda w: w.fill_(torch.nan), lambda w: w.copy_(torch.ones_like(w))):
        net = mlp()
        with torch.no_grad():
            fault(net[2].weight)
        assert drawn(net.parameters())


def test_what_starts_at_zero_tells_nothing() -> None:
    net = mlp()
    nn.init.zeros_(net[-1].weight)
    assert drawn(net.parameters())
    assert not drawn([torch.zeros(64, 64)])


@pytest.mark.parametrize(
    "weights",
    [[], [torch.randn(100)], [torch.randn(3, 4)], [torch.randn(2, 500)], [torch.arange(100).view(10, 10)]],
    ids=["nothing", "a vector", "few elements", "two rows", "integers"],
)
def test_of_too_little_nothing_is_said_to_be_drawn(weights: list[Tensor]) -> None:
    assert not drawn(weights)


# -- training leaves its marks


def trained(net: nn.Module, make_batch: Callable[[], tuple[Tensor, Tensor]], optimizer: Any, steps: int) -> nn.Module:
    net.train()
    made = optimizer(net.parameters())
    for _ in range(steps):
        x, y = make_batch()
        made.zero_grad()
        nn.functional.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()
        made.step()
    return net


def clusters(shape: tuple[int, ...], classes: int = 10) -> Callable[[], tuple[Tensor, Tensor]]:
    centres = torch.randn(classes, *shape)

    def batch() -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (64,))
        return centres[y] + torch.randn(64, *shape), y

    return batch


def successors() -> tuple[Tensor, Tensor]:
    """Sequences in which each symbol follows from the one before."""
    x = (torch.randint(60, (1, 16)) + 7 * torch.arange(12)[:, None]) % 60
    return x, (x + 7) % 60


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = transformer(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


ADAM = partial(torch.optim.Adam, lr=3e-3)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
TRAINED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Any, int]] = {
    "mlp-adam": (mlp, lambda: clusters((20,)), ADAM, 300),
    "mlp-sgd": (mlp, lambda: clusters((20,)), SGD, 300),
    "convolutions-adam": (convolutions, lambda: clusters((3, 8, 8)), ADAM, 200),
    "convolutions-sgd": (convolutions, lambda: clusters((3, 8, 8)), SGD, 200),
    "lstm-adam": (partial(Recurrent, nn.LSTM), lambda: successors, ADAM, 300),
    "gru-adam": (partial(Recurrent, nn.GRU), lambda: successors, ADAM, 300),
    "transformer-adam": (Classifier, lambda: clusters((5, 32)), partial(torch.optim.Adam, lr=1e-3), 300),
}


UNSEEN = pytest.mark.xfail(
    strict=True,
    reason="a small transformer learns an easy task to 100 % and 9 of 9 matrices look drawn; 8 of 9 after 2,000 steps",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[UNSEEN] if name == "transformer-adam" else []) for name in TRAINED]
)
def test_a_trained_network_does_not_look_drawn(name: str) -> None:
    make, data, optimizer, steps = TRAINED[name]
    torch.manual_seed(0)
    net = make()
    assert drawn(net.parameters())
    assert not drawn(trained(net, data(), optimizer, steps).parameters())
