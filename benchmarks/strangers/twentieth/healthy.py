"""Right training programs that look alarming or unusual from outside."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from sklearn import datasets
from sklearn.metrics import average_precision_score
from torch import nn

from common import *


# ---------------------------------------------------------------- generative, manual optimization
class GAN(Manual):
    def __init__(self):
        super().__init__()
        self.gen, self.dis = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

    def training_step(self, batch, _):
        og, od = self.optimizers()
        real = batch[0]
        fake = self.gen(torch.randn(len(real), 4))
        ld = F.softplus(-self.dis(real)).mean() + F.softplus(self.dis(fake.detach())).mean()
        self.update(od, ld)
        lg = F.softplus(-self.dis(fake)).mean()
        self.update(og, lg)
        self.log_dict({"d": ld, "g": lg})

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.gen.parameters(), lr=1e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.dis.parameters(), lr=1e-3, betas=(0.5, 0.9)),
        )


def energy(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def iris_gan(seed):
    """A GAN draws petals of irises; its two losses never fall, they only hold each other (manual optimization).

    Scored by one minus the energy distance to the data over that of a single round normal distribution.
    """
    x = T(datasets.load_iris().data[:, 2:])
    x = (x - x.mean(0)) / x.std(0)
    g = G(seed)
    many = x[torch.randint(150, (2048,), generator=g)] + 0.05 * torch.randn(2048, 2, generator=g)
    z, n = torch.randn(1000, 4, generator=g), torch.randn(1000, 2, generator=g)

    def score(m):
        with torch.no_grad():
            return 1 - energy(m.gen(z), many[:1000]) / energy(n, many[:1000])

    return Run(GAN(), loader(many, batch=64, seed=seed), score, 0.0, {"max_steps": 3000})


# ---------------------------------------------------------------- online, a batch of one
def tumours_one_by_one(seed):
    """Breast cancer, one patient a step (SGD with momentum): the loss leaps between nothing and much."""
    d = datasets.load_breast_cancer()
    x, y = T(d.data), L(d.target)
    tr, te = split(len(y), seed)
    x, _, _ = standard(x, tr)
    task = Task(
        mlp(30, 24, 2),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8),
    )
    return Run(
        task,
        loader(x[tr], y[tr], batch=1, seed=seed),
        lambda m: accuracy(m.net.eval()(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 3000},
    )


# ---------------------------------------------------------------- fine-tuning, frozen parts
class Thaw(Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at:
            module.net[0].requires_grad_(True)


def new_head_then_thaw(seed):
    """A body trained on the digits 0 to 4 gets a new, empty head for all ten; the body thaws after 300 steps (NAdam)."""
    d = datasets.load_digits()
    x, y = T(d.data / 16), L(d.target)
    tr, te = split(len(y), seed)
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    head = nn.Linear(32, 5)
    few = tr[(y[tr] < 5).numpy()]
    opt = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    for b in range(400):
        i = few[np.random.RandomState(1000 * seed + b).randint(len(few), size=32)]
        opt.zero_grad()
        F.cross_entropy(head(body(x[i])), y[i]).backward()
        opt.step()
    head = nn.Linear(32, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    body.requires_grad_(False)
    task = Task(
        nn.Sequential(body, head),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.NAdam(p, lr=2e-3),
    )
    return Run(
        task,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(m.net.eval()(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 2400, "callbacks": [Thaw(300)]},
    )


# ---------------------------------------------------------------- warm restarts
def restarts_with_dropout(seed):
    """Digits with strong dropout and label smoothing; the rate jumps from zero to 0.4 at each warm restart (SGD)."""
    d = datasets.load_digits()
    x, y = T(d.data / 16), L(d.target)
    tr, te = split(len(y), seed)
    net = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10),
    )  # fmt: skip
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], label_smoothing=0.1),
        lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.9, weight_decay=1e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 200, 2),
    )
    return Run(
        task,
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda m: accuracy(m.net.eval()(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 3000},
    )


# ---------------------------------------------------------------- reinforcement learning, sparse reward
class Corridor(LightningModule):
    """Q-learning with replay and a copied target in a corridor; only the far end pays."""

    length, moves = 9, torch.tensor([-1, 1])

    def __init__(self, seed):
        super().__init__()
        self.net, self.slow = mlp(self.length, 48, 2), mlp(self.length, 48, 2).requires_grad_(False)
        self.slow.load_state_dict(self.net.state_dict())
        self.g, self.at, self.memory, self.n = G(seed + 5), torch.zeros(16, dtype=torch.long), [], 0

    def code(self, s):
        return F.one_hot(s, self.length).float()

    def go(self, s, a):
        s2 = (s + self.moves[a]).clamp(0, self.length - 1)
        return s2, (s2 == self.length - 1).float()

    def training_step(self, batch, _):
        with torch.no_grad():
            a = self.net(self.code(self.at)).argmax(-1)
            chance = torch.rand(16, generator=self.g) < max(0.1, 1 - self.n / 1500)
            a = torch.where(chance, torch.randint(2, (16,), generator=self.g), a)
            s2, r = self.go(self.at, a)
            self.memory = [*self.memory[-400:], (self.at, a, r, s2)]
            quit = torch.rand(16, generator=self.g) < 0.08
            self.at = torch.where((r > 0) | quit, torch.zeros_like(s2), s2)
            pick = [self.memory[i] for i in torch.randint(len(self.memory), (4,), generator=self.g)]
            s, a, r, s2 = (torch.cat(c) for c in zip(*pick))
            if self.n % 50 == 0:
                self.slow.load_state_dict(self.net.state_dict())
            self.n += 1
            target = 10 * r + 0.9 * (1 - r) * self.slow(self.code(s2)).max(-1).values
        loss = F.smooth_l1_loss(self.net(self.code(s)).gather(1, a[:, None])[:, 0], target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)


def sparse_corridor(seed):
    """Q-learning with a reward that is seldom seen: the loss is nearly nothing, then rises as values spread (Adam).

    Scored by the discounted value of the greedy policy from the start over the best one.
    """
    m = Corridor(seed)

    def score(m):
        s, worth = torch.zeros(1, dtype=torch.long), 1.0
        with torch.no_grad():
            for _ in range(40):
                s, r = m.go(s, m.net(m.code(s)).argmax(-1))
                if r > 0:
                    return worth / 0.9 ** (m.length - 2)
                worth *= 0.9
        return 0.0

    return Run(m, ticks(2500, seed), score, 0.0, {"max_steps": 2500})


# ---------------------------------------------------------------- regime: the plant changes
def valve_replaced(seed):
    """A stream from a plant: halfway a valve is replaced and the flow answers reversed and four times stronger (Adam)."""
    g = G(seed)
    n = 2400 * 32
    x = torch.randn(n + 2000, 6, generator=g)
    f = lambda x: torch.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3]
    y = torch.where(torch.arange(len(x)) < n // 2, f(x), 3 - 4 * f(x)) + 0.1 * torch.randn(len(x), generator=g)
    task = Task(
        mlp(6, 64, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.Adam(p, lr=2e-3),
    )
    return Run(
        task,
        loader(x[:n], y[:n], batch=32, seed=seed, shuffle=False),
        lambda m: r2(m.net.eval()(x[n:]), y[n:]),
        0.0,
        {"max_steps": 2400},
    )


# ---------------------------------------------------------------- regime: recurrent, a curriculum
def longer_and_longer(seed):
    """A GRU adds the two marked numbers of a sequence; after 700 steps sequences grow from 8 to 30 (RMSprop)."""

    def make(n, length, g):
        v = torch.rand(n, length, generator=g)
        k = torch.zeros(n, length)
        h = length // 2
        k[torch.arange(n), torch.randint(h, (n,), generator=g)] = 1
        k[torch.arange(n), h + torch.randint(length - h, (n,), generator=g)] = 1
        return torch.stack([v, k], -1), (v * k).sum(1)

    class Adder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[1][0])[:, 0]

    def loss(m, b):
        x, y = make(48, 8 if m.global_step < 700 else 30, G(int(b[0][0])))
        return F.mse_loss(m.net(x), y)

    xt, yt = make(600, 30, G(seed + 50))
    task = Task(Adder(), loss, lambda p: torch.optim.RMSprop(p, lr=2e-3))
    return Run(task, ticks(1800, seed), lambda m: r2(m.net.eval()(xt), yt), 0.0, {"max_steps": 1800})


# ---------------------------------------------------------------- finance, rare classes
def rare_fraud(seed):
    """Fraud in payments, one in eighty, weighed eighty times: most batches are quiet, a few leap (AdamW, warm-up).

    Scored by average precision.
    """
    g = G(seed)
    x = torch.randn(8000, 12, generator=g)
    y = (torch.rand(8000, generator=g) < 1 / 80).float()
    x[y > 0] += 1.6 * torch.tensor([1.0, -1, 1, 1, -1] + [0.0] * 7)
    x = x * torch.linspace(0.5, 2, 12)
    tr, te = split(8000, seed, 0.6)
    task = Task(
        mlp(12, 32, 1),
        lambda m, b: F.binary_cross_entropy_with_logits(m.net(b[0])[:, 0], b[1], pos_weight=torch.tensor(80.0)),
        lambda p: torch.optim.AdamW(p, lr=3e-3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1, (s + 1) / 300)),
    )

    def score(m):
        with torch.no_grad():
            p = m.net(x[te])[:, 0]
        return average_precision_score(y[te], p) if torch.isfinite(p).all() else math.nan

    return Run(task, loader(x[tr], y[tr], batch=16, seed=seed), score, float(y[te].mean()), {"max_steps": 2500})


# ---------------------------------------------------------------- physics, heavy tails and negative losses
def heavy_tailed_decay(seed):
    """Decay curves with Cauchy-like noise, mean and width learnt by a Student likelihood: the loss goes far below zero.

    Adadelta at a rate of one. Scored by r2 against the clean curve.
    """
    g = G(seed)
    x = torch.rand(3000, 3, generator=g)
    clean = lambda x: 0.05 * (x[:, 0] * torch.exp(-3 * x[:, 1]) - 0.3 * x[:, 2] ** 2)
    u = torch.rand(3000, generator=g) - 0.5
    y = clean(x) + 2e-4 * (1 + 4 * x[:, 2]) * torch.tan(0.999 * math.pi * u)
    xt = torch.rand(1000, 3, generator=g)

    def loss(m, b):
        mean, width = m.net(b[0]).unbind(-1)
        e = (b[1] - 0.05 * mean) * (-width).exp()
        return (width + 1.5 * torch.log1p(e**2 / 2)).mean()

    task = Task(mlp(3, 48, 48, 2, act=nn.SiLU), loss, lambda p: torch.optim.Adadelta(p, lr=1.0))
    return Run(
        task,
        loader(x, y, batch=40, seed=seed),
        lambda m: r2(0.05 * m.net.eval()(xt)[:, 0], clean(xt)),
        0.0,
        {"max_steps": 2500},
    )


RUNS = [
    iris_gan,
    tumours_one_by_one,
    new_head_then_thaw,
    restarts_with_dropout,
    sparse_corridor,
    valve_replaced,
    longer_and_longer,
    rare_fraud,
    heavy_tailed_decay,
]
REGIME = {"valve_replaced", "longer_and_longer"}
