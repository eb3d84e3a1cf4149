"""What these runs share: the record of a run, data, small helpers."""

from __future__ import annotations

import copy
import math
import pathlib
from dataclasses import dataclass, field

import lightning.pytorch as pl
import numpy as np
import sklearn.datasets
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Built:
    module: pl.LightningModule
    loaders: object
    kwargs: dict
    score: object
    trivial: float
    fit: dict = field(default_factory=dict)


RUNS: dict[str, dict] = {}


def run(kind, text, regime=False):
    def deco(build):
        RUNS[build.__name__] = {"build": build, "kind": kind, "text": text, "regime": regime}
        return build

    return deco


def gen(seed):
    return torch.Generator().manual_seed(seed)


def loader(*tensors, batch, seed, shuffle=True, drop_last=True):
    return DataLoader(
        TensorDataset(*tensors), batch_size=batch, shuffle=shuffle, drop_last=drop_last, generator=gen(seed + 77)
    )


def split(n, seed, test=0.25):
    order = np.random.RandomState(seed).permutation(n)
    k = int(n * test)
    return order[k:], order[:k]


def f32(a):
    return torch.tensor(np.asarray(a), dtype=torch.float32)


def digits(seed, scale=1 / 16):
    d = sklearn.datasets.load_digits()
    x, y = f32(d.data) * scale, torch.tensor(d.target)
    tr, te = split(len(x), seed)
    return x[tr], y[tr], x[te], y[te]


def majority(y):
    return torch.bincount(y).max().item() / len(y)


def r2(pred, y):
    if not torch.isfinite(pred).all():
        return math.nan
    pred, y = pred.double(), y.double()
    return (1 - ((pred - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()).item()


def evaluating(f):
    def score(module):
        module = copy.deepcopy(module).eval() if False else module.eval()
        with torch.no_grad():
            return f(module)

    return score


def accuracy_score(x, y):
    @evaluating
    def score(m):
        out = m(x)
        if not torch.isfinite(out).all():
            return math.nan
        return (out.argmax(-1) == y).float().mean().item()

    return score


def r2_score(x, y):
    return evaluating(lambda m: r2(m(x).reshape(y.shape), y))


def descr_texts():
    folder = pathlib.Path(sklearn.datasets.__file__).parent / "descr"
    return [p.read_text(encoding="utf8") for p in sorted(folder.glob("*.rst"))]


class Supervised(pl.LightningModule):
    """The usual thing: a net, a loss, an optimizer."""

    def __init__(self, net, loss, optim, log=True):
        super().__init__()
        self.net, self.loss, self._optim, self._log_loss = net, loss, optim, log

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self(x), y)
        if self._log_loss:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return self._optim(self)


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                m = state["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((m * b1 + p.grad * (1 - b1)).sign_(), alpha=-group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


def small_cnn(width=16):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 10),
    )


def houses(seed, n=3000):
    rng = np.random.RandomState(1000 + seed)
    area = rng.lognormal(7.4, 0.4, n)  # square feet
    rooms = np.clip(np.round(area / 450 + rng.randn(n)), 1, 12)
    year = rng.randint(1900, 2021, n)
    metres = rng.gamma(2, 4000, n)  # to the centre
    lot = rng.lognormal(8.8, 0.5, n)
    price = (
        90 * area
        + 4000 * rooms
        + 900 * (year - 1900)
        + 3 * lot
        + 250000 * np.exp(-metres / 6000)
        + 15000 * rng.randn(n)
    )
    return np.stack([area, rooms, year, metres, lot], 1), price


def graphs(seed, n=240, nodes=36, classes=3):
    """Small graphs with communities; a fifth of the nodes show (noisily) which is theirs."""
    rng = np.random.RandomState(500 + seed)
    A, X, Y = [], [], []
    for _ in range(n):
        y = rng.randint(0, classes, nodes)
        p = np.where(y[:, None] == y[None], 0.7, 0.2)
        a = np.triu(rng.rand(nodes, nodes) < p, 1)
        a = (a | a.T).astype(np.float32) + np.eye(nodes, dtype=np.float32)
        x = np.zeros((nodes, classes + 2), np.float32)
        known = rng.rand(nodes) < 0.25
        x[known, y[known]] = 1
        x[:, classes:] = rng.randn(nodes, 2) * 0.3
        A.append(a), X.append(x), Y.append(y)
    return f32(np.stack(A)), f32(np.stack(X)), torch.tensor(np.stack(Y))


class GraphNet(nn.Module):
    def __init__(self, normalise, width=48, layers=4, inp=5, out=3):
        super().__init__()
        self.normalise = normalise
        sizes = [inp] + [width] * layers
        self.agg = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.own = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.out = nn.Linear(width, out)

    def forward(self, a, x):
        if self.normalise:
            a = a / a.sum(-1, keepdim=True)
        for agg, own in zip(self.agg, self.own):
            x = torch.relu(agg(a @ x) + own(x))
        return self.out(x)


class GraphModule(pl.LightningModule):
    def __init__(self, net, optim):
        super().__init__()
        self.net, self._optim = net, optim

    def forward(self, a, x):
        return self.net(a, x)

    def training_step(self, batch, batch_idx):
        a, x, y = batch
        return nn.functional.cross_entropy(self(a, x).flatten(0, 1), y.flatten())

    def configure_optimizers(self):
        return self._optim(self)


def graph_score(a, x, y):
    @evaluating
    def score(m):
        out = m(a, x)
        return (out.argmax(-1) == y).float().mean().item() if torch.isfinite(out).all() else math.nan

    return score


def pretrain(net, x, y, steps, lr=1e-3, batch=64, seed=0):
    g, opt = gen(seed), torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        i = torch.randint(0, len(x), (batch,), generator=g)
        opt.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
    opt.zero_grad()
    return net
