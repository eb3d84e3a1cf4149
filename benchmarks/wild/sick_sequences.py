"""Sick runs of recurrent nets and transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.plain import Plain, accuracy, explained, shuffled
from benchmarks.zoo.data import markov


class Reader(nn.Module):
    """A recurrent net over numbers or tokens that answers at its last place, or at every place."""

    def __init__(self, rnn: nn.RNNBase, outputs: int, tokens: int = 0, every: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, rnn.input_size) if tokens else None
        self.rnn, self.head, self.every = rnn, nn.Linear(rnn.hidden_size, outputs), every

    def forward(self, x: Tensor) -> Tensor:
        """Read a sequence."""
        states, _ = self.rnn(self.embed(x) if self.embed else x)
        out: Tensor = self.head(states if self.every else states[:, -1])
        return out


def per_token(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the mean cross-entropy of all places."""
    return cross_entropy(logits.flatten(0, 1), y.flatten())


def waves(length: int) -> tuple[Tensor, Tensor]:
    """Generate noisy waves of random frequency and phase, and what comes three steps later."""
    g = torch.Generator().manual_seed(4)
    speed, phase = 0.1 + 0.3 * torch.rand(900, 1, generator=g), 6.28 * torch.rand(900, 1, generator=g)
    wave = torch.sin(speed * torch.arange(length + 3) + phase)
    return (wave[:, :-3] + 0.05 * torch.randn(900, length, generator=g))[..., None], wave[:, -1:]


@case(
    kind="sick",
    what="a ReLU RNN over 40 places whose recurrent weights are drawn from a normal distribution of 0.3",
    correction="recurrent weights initialised anew",
    steps=300,
    chance=0.0,
)
def relu_rnn_over_long_waves(seed: int, variant: Variant) -> Task:
    """A ReLU RNN over 40 places whose recurrent weights are drawn from a normal distribution of 0.3."""
    x, y = waves(40)
    net = Reader(nn.RNN(1, 40, nonlinearity="relu", batch_first=True), 1)
    if variant == "written":
        nn.init.normal_(net.rnn.weight_hh_l0, std=0.3)  # type: ignore[arg-type]
    else:
        nn.init.orthogonal_(net.rnn.weight_hh_l0)  # type: ignore[arg-type]
    module = Plain(net, mse_loss, lambda p: torch.optim.Adam(p, 2e-3))
    return Task(module, shuffled(x[:700], y[:700], seed=seed), explained(x[700:], y[700:]))


@case(
    kind="sick",
    what="a GRU forecasts waves with RMSprop at a rate of 0.5",
    correction="a lower learning rate",
    steps=250,
    chance=0.0,
)
def gru_forecast_with_rmsprop(seed: int, variant: Variant) -> Task:
    """A GRU forecasts waves with RMSprop at a rate of 0.5."""
    x, y = waves(20)
    lr = {"written": 0.5, "twin": 3e-3, "corrected": 5e-3}[variant]
    module = Plain(Reader(nn.GRU(1, 32, batch_first=True), 1), mse_loss, lambda p: torch.optim.RMSprop(p, lr))
    return Task(module, shuffled(x[:700], y[:700], seed=seed), explained(x[700:], y[700:]))


@case(
    kind="sick",
    what="the cross-entropy of a ReLU RNN is summed over batch and places, the rate is that of a mean",
    correction="a lower learning rate",
    steps=400,
    chance=0.0625,
)
def summed_loss_of_characters(seed: int, variant: Variant) -> Task:
    """The cross-entropy of a ReLU RNN is summed over batch and places, the rate is that of a mean."""
    m = markov()
    factor, lr = (1 if variant == "twin" else 512), (1e-3 if variant == "corrected" else 0.3)
    net = Reader(nn.RNN(24, 64, nonlinearity="relu", batch_first=True), 16, tokens=16, every=True)
    module = Plain(net, lambda z, y: factor * per_token(z, y), lambda p: torch.optim.SGD(p, lr, momentum=0.9))
    return Task(module, shuffled(m.x, m.y, seed=seed), accuracy(m.x_test, m.y_test))


class Encoder(nn.Module):
    """PyTorch's transformer encoder over tokens, or over the rows of a digit."""

    def __init__(
        self, inputs: nn.Module, outputs: int, length: int, first: bool, depth: int = 2, pool: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.position = inputs, nn.Parameter(0.1 * torch.randn(length, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=first) for _ in range(depth)
        )
        self.head, self.pool = nn.Linear(32, outputs), pool

    def forward(self, x: Tensor) -> Tensor:
        """Answer for every place, or for the mean of all."""
        x = self.inputs(x) + self.position
        mask = None if self.pool else nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.head(x.mean(1) if self.pool else x)
        return out


@case(
    kind="sick",
    what="a post-LN transformer starts at a rate of 0.3 without warm-up",
    correction="a lower learning rate",
    steps=250,
    chance=0.0625,
)
def post_ln_without_warm_up(seed: int, variant: Variant) -> Task:
    """A post-LN transformer starts at a rate of 0.3 without warm-up."""
    m = markov()
    lr = {"written": 0.3, "twin": 3e-3, "corrected": 2e-3}[variant]

    def warm_up(optimizer: torch.optim.Optimizer) -> object:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.02 if variant == "twin" else 1.0, total_iters=60)

    net = Encoder(nn.Embedding(16, 32), 16, 16, first=False)
    module = Plain(net, per_token, lambda p: torch.optim.Adam(p, lr, (0.9, 0.98)), warm_up)
    return Task(module, shuffled(m.x, m.y, seed=seed, size=16), accuracy(m.x_test, m.y_test))
