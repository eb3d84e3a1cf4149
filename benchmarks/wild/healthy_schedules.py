"""Healthy runs that look stuck or restless: plateaus, deep nets, zero-initialised parts, and lively schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, OneCycleLR

from benchmarks.wild._healthy import Data, Plain, accuracy, breast_cancer, digits, loader, lr, mlp, scored
from benchmarks.wild.case import Task, Variant, case


def parity(bits: int, count: int = 2000) -> Data:
    """Draw rows of signs; the class is the parity of the first few."""
    x = torch.randint(0, 2, (count, 8)).float() * 2 - 1
    y = (x[:, :bits].prod(1) > 0).long()
    return Data(x[500:], y[500:], x[:500], y[:500])


@case(kind="healthy", what="a flat loss of log 2 before it falls all at once", steps=700, chance=0.5)
def parity_of_four_bits(seed: int, variant: Variant) -> Task:
    """Parity by momentum SGD."""
    data = parity(4, 4000)
    module = Plain(mlp(8, 128, 2), F.cross_entropy, lambda p: SGD(p, lr(variant, 0.05), 0.9))
    return Task(module, loader(seed, data.x, data.y), accuracy(data, 0.5))


@case(kind="healthy", what="a plateau at 1/4 of squared error through sigmoids", steps=800, chance=0.5)
def xor_of_the_textbook(seed: int, variant: Variant) -> Task:
    """The four rows of XOR with a sigmoid net, squared error and full batches."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([[0.0], [1], [1], [0]])
    net = nn.Sequential(mlp(2, 8, 1, act=nn.Sigmoid), nn.Sigmoid())
    module = Plain(net, F.mse_loss, lambda p: Adam(p, lr(variant, 2.5e-2)))
    return Task(module, loader(seed, x, y, size=4), scored(lambda m: 1 - (m(x) - y).abs().mean(), 0.5))


@case(
    kind="healthy", what="nothing is learned at first, then the gradient grows many times over", steps=700, chance=0.1
)
def five_sigmoid_layers(seed: int, variant: Variant) -> Task:
    """A deep sigmoid net on the digits by Adam."""
    data = digits()
    module = Plain(mlp(64, 64, 64, 64, 64, 10, act=nn.Sigmoid), F.cross_entropy, lambda p: Adam(p, lr(variant, 8e-3)))
    return Task(module, loader(seed, data.x, data.y, size=64), accuracy(data))


class ReZero(nn.Module):
    """Residual blocks behind gates that begin at zero."""

    def __init__(self, depth: int, width: int, gate: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(depth))
        self.gates = nn.Parameter(torch.full((depth,), gate))

    def forward(self, x: Tensor) -> Tensor:
        """Add the gated blocks."""
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + gate * block(x)
        return x


@case(kind="healthy", what="gates that are exactly zero, blocks without a gradient at first", steps=400, chance=0.1)
def eight_rezero_blocks(seed: int, variant: Variant) -> Task:
    """A deep ReZero net on the digits."""
    data = digits()
    net = nn.Sequential(nn.Linear(64, 48), ReZero(8, 48, 0.0), nn.Linear(48, 10))
    module = Plain(net, F.cross_entropy, lambda p: Adam(p, lr(variant, 3e-3)))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(
    kind="healthy",
    what="a head of zeros under layer scales of 1e-4: gradients grow ten-thousandfold",
    steps=400,
    chance=0.1,
)
def zero_head_and_layer_scale(seed: int, variant: Variant) -> Task:
    """Scaled residual blocks with a zero head, AdamW with a short warm-up."""
    data = digits()
    head = nn.Linear(48, 10)
    nn.init.zeros_(head.weight)
    net = nn.Sequential(nn.Linear(64, 48), ReZero(4, 48, 1e-4), nn.LayerNorm(48), head)
    module = Plain(
        net,
        F.cross_entropy,
        lambda p: AdamW(p, lr(variant, 5e-3), weight_decay=0.05),
        lambda o: LambdaLR(o, lambda k: min(1.0, (k + 1) / 50)),
    )
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(kind="healthy", what="a rate that climbs twenty-five-fold and falls to nothing", steps=350, chance=0.1)
def one_cycle_of_batch_norm(seed: int, variant: Variant) -> Task:
    """Super-convergence of a BatchNorm convolution on the digits."""
    data, top = digits(), lr(variant, 0.3)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    module = Plain(net, F.cross_entropy, lambda p: SGD(p, top, 0.9), lambda o: OneCycleLR(o, top, total_steps=360))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(kind="healthy", what="the rate swings by a factor of a hundred and the loss with it", steps=480, chance=0.1)
def triangular_cycles(seed: int, variant: Variant) -> Task:
    """A cyclic rate on the digits by momentum SGD."""
    data, top = digits(), lr(variant, 0.15)
    module = Plain(
        mlp(64, 64, 10),
        F.cross_entropy,
        lambda p: SGD(p, top, 0.9),
        lambda o: CyclicLR(o, top / 100, top, step_size_up=40, cycle_momentum=False),
    )
    return Task(module, loader(seed, data.x, data.y, size=16), accuracy(data))


@case(kind="healthy", what="the rate jumps from zero to full four times", steps=450, chance=0.6)
def restarts_on_tumours(seed: int, variant: Variant) -> Task:
    """Warm restarts of growing length on a batch of ten, NAdam."""
    data = breast_cancer()
    module = Plain(
        mlp(30, 24, 2),
        F.cross_entropy,
        lambda p: NAdam(p, lr(variant, 4e-3)),
        lambda o: CosineAnnealingWarmRestarts(o, 30, 2),
    )
    return Task(module, loader(seed, data.x, data.y, size=10), accuracy(data, 0.6))


class Copier(LightningModule):
    """A causal transformer that learns to repeat the first half of a sequence."""

    def __init__(self, rate: float, tokens: int = 8, half: int = 6, width: int = 32) -> None:
        super().__init__()
        self.half, self.rate = half, rate
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(0.5 * torch.randn(2 * half - 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(2 * half - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of what follows each token."""
        out: Tensor = self.head(self.body(self.embed(x) + self.place, mask=self.mask))
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Ask for the second half only."""
        x = torch.cat([batch[0], batch[0]], 1)
        return F.cross_entropy(self(x[:, :-1])[:, self.half - 1 :].flatten(0, 1), x[:, self.half :].flatten())

    def configure_optimizers(self) -> Any:
        """Warm up for sixty steps, then decay as the inverse square root."""
        optimizer = AdamW(self.parameters(), self.rate, betas=(0.9, 0.98))
        schedule = LambdaLR(optimizer, lambda k: min((k + 1) / 60, math.sqrt(60 / (k + 1))))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def copied(half: int) -> Any:
    """Score a copier by the share of tokens repeated."""
    first = torch.randint(0, 8, (200, half), generator=torch.Generator().manual_seed(9))
    x = torch.cat([first, first], 1)
    return scored(lambda m: (m(x[:, :-1])[:, half - 1 :].argmax(-1) == first).float().mean(), 0.125)


@case(kind="healthy", what="a warm-up, a plateau at log 8, then a cliff", steps=260, chance=0.125)
def transformer_learns_to_copy(seed: int, variant: Variant) -> Task:
    """A small transformer on a copying task."""
    return Task(Copier(lr(variant, 4e-3)), loader(seed, torch.randint(0, 8, (4000, 6))), copied(6))


class Lion(Optimizer):
    """Sign of the mixed momentum, as of Chen et al. (2023)."""

    def __init__(self, params: Any, rate: float, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": rate, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every weight by the rate."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["decay"]).sub_(group["lr"] * torch.sign(0.9 * m + 0.1 * p.grad))
                    m.lerp_(p.grad, 0.01)
        return loss


@case(kind="healthy", what="every step has the same size, whatever the gradient", steps=400, chance=0.1)
def digits_by_lion(seed: int, variant: Variant) -> Task:
    """A hand-written Lion with decoupled decay."""
    data = digits()
    module = Plain(mlp(64, 64, 10), F.cross_entropy, lambda p: Lion(p, lr(variant, 1e-3), 0.1))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


class Late(nn.Module):
    """A recurrent net that answers from its last state."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Answer from the last state."""
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


@case(
    kind="healthy",
    what="a long plateau at the variance, user's clipping active, then a fall",
    steps=450,
    trainer=lambda: {"gradient_clip_val": 0.5},
)
def adding_problem_by_lstm(seed: int, variant: Variant) -> Task:
    """Sum of two marked numbers out of ten, an LSTM."""
    values, marks = torch.rand(3400, 10), torch.zeros(3400, 10)
    marks.scatter_(1, torch.randint(0, 5, (3400, 1)), 1).scatter_(1, torch.randint(5, 10, (3400, 1)), 1)
    x, y = torch.stack([values, marks], 2), (values * marks).sum(1, keepdim=True)
    module = Plain(Late(), F.mse_loss, lambda p: Adam(p, lr(variant, 1.5e-2)))
    score = scored(lambda m: 1 - (m(x[3000:]) - y[3000:]).square().mean() / y[3000:].var())
    return Task(module, loader(seed, x[:3000], y[:3000], size=50), score)
