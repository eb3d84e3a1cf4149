"""Ten programs that train well, though some look alarming; REGIME names those that change for good on purpose."""

import math

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import LightningModule
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import nn
from torch.nn import functional as F


def _digits(seed):
    d = load_digits()
    tr, te = split(len(d.target), seed)
    return T(d.data) / 16, L(d.target), tr, te


def _accuracy(x, y):
    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x), y)

    return score


def _cross_entropy(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


def one_digit_at_a_time(seed):
    """Digits with plain SGD and batch size 1: the loss jumps between 0 and 6 from step to step."""
    x, y, tr, te = _digits(seed)
    task = Task(mlp(64, 64, 10), _cross_entropy, lambda p: torch.optim.SGD(p, 0.05))
    data = loader(x[tr], y[tr], batch=1, seed=seed)
    return Run(task, data, _accuracy(x[te], y[te]), majority(y[te]), {"max_steps": 1500})


class Density(nn.Module):
    """A mixture of eight Gaussians for y given x."""

    def __init__(self):
        super().__init__()
        self.body = mlp(1, 48, 48, 24, act=nn.Tanh)

    def log_prob(self, x, y):
        w, m, s = self.body(x).chunk(3, 1)
        s = s.clamp(-5, 3)
        part = w.log_softmax(1) - s - 0.5 * ((y - m) / s.exp()) ** 2 - 0.5 * math.log(2 * math.pi)
        return part.logsumexp(1)


def mixture_density_negative(seed):
    """A mixture density network on a sharp inverse problem with Adam: the loss falls far below zero, with spikes."""
    rs = np.random.RandomState(seed + 201)
    u = rs.rand(3000, 1)
    x = T(u + 0.3 * np.sin(2 * np.pi * u))
    y = T(u + 0.01 * rs.randn(3000, 1)) * 0.3
    tr, te = split(3000, seed)

    def score(m):
        with torch.no_grad():
            return float(m.net.log_prob(x[te], y[te]).double().mean())

    trivial = float(torch.distributions.Normal(y[tr].mean(), y[tr].std()).log_prob(y[te]).mean())
    task = Task(Density(), lambda m, b: -m.net.log_prob(*b).mean(), lambda p: torch.optim.Adam(p, 5e-3))
    return Run(task, loader(x[tr], y[tr], batch=64, seed=seed), score, trivial, {"max_steps": 700})


def raw_diabetes_targets(seed):
    """Regression on diabetes with the targets as they are (25 to 346; losses start near 30000), Adagrad at rate 0.3."""
    d = load_diabetes()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), T(d.target)

    def score(m):
        with torch.no_grad():
            return r2(m.net(x[te]), y[te])

    task = Task(mlp(10, 32, 1), lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]), lambda p: torch.optim.Adagrad(p, 0.3))
    return Run(task, loader(x[tr], y[tr], batch=16, seed=seed), score, 0.0, {"max_steps": 600})


class Corridor(Manual):
    """REINFORCE with a moving baseline in a corridor of eight cells; only its right end pays, once."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 2)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)
        self.register_buffer("base", torch.zeros(()))

    def walk(self, n, g):
        at, done, logp = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        for _ in range(18):
            lp = self.net(F.one_hot(at, 8).float()).log_softmax(1)
            a = torch.multinomial(lp.detach().exp(), 1, generator=g).squeeze(1)
            logp = logp + torch.where(done, 0.0, lp[torch.arange(n), a])
            at = torch.where(done, at, (at + 2 * a - 1).clamp(0, 7))
            done = done | (at == 7)
        return logp, done.float()

    def training_step(self, batch, _):
        logp, paid = self.walk(16, G(int(batch[0])))
        loss = -(logp * (paid - self.base)).mean()
        self.base += 0.05 * (paid.mean() - self.base)
        self.log("loss", loss)
        self.log("reward", paid.mean())
        self.update(self.optimizers(), loss)

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), 0.02)


def sparse_corridor(seed):
    """A policy gradient with sparse rewards: many batches without any reward, a loss that means nothing."""

    def score(m):
        with torch.no_grad():
            return float(m.walk(500, G(seed + 211))[1].mean())

    module = Corridor()
    return Run(module, ticks(500, seed), score, score(module), {"max_steps": 500})


def warm_restarts_large_rate(seed):
    """Wine with Nesterov momentum and cosine warm restarts from a rate of 0.3: the loss is bumpy at each restart."""
    d = load_wine()
    tr, te = split(len(d.target), seed, 0.6)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    task = Task(
        nn.Sequential(nn.Linear(13, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3)),
        _cross_entropy,
        lambda p: torch.optim.SGD(p, 0.3, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 75),
    )

    def score(m):
        m.eval()
        return _accuracy(x[te], y[te])(m)

    return Run(task, loader(x[tr], y[tr], batch=16, seed=seed), score, majority(y[te]), {"max_steps": 525})


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1]).squeeze(1)


def adding_plateau(seed):
    """The adding problem (20 steps) with a GRU and RAdam: hundreds of steps at the loss of the mean, then a fall."""
    g = G(seed + 221)
    n, steps = 6000, 20
    v = torch.rand(n, steps, generator=g)
    a = torch.randint(steps // 2, (n,), generator=g)
    b = torch.randint(steps // 2, steps, (n,), generator=g)
    mark = torch.zeros(n, steps)
    mark[torch.arange(n), a] = 1
    mark[torch.arange(n), b] = 1
    x, y = torch.stack([v, mark], 2), (v * mark).sum(1)

    def score(m):
        with torch.no_grad():
            return r2(m.net(x[5000:]), y[5000:])

    task = Task(Last(), lambda m, q: F.mse_loss(m.net(q[0]), q[1]), lambda p: torch.optim.RAdam(p, 1e-2))
    return Run(task, loader(x[:5000], y[:5000], batch=32, seed=seed), score, 0.0, {"max_steps": 900})


def rprop_full_batch(seed):
    """Tumours with Rprop on the whole training set at each step: rates of its own, steps back and forth."""
    d = load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    task = Task(mlp(30, 16, 2, act=nn.Tanh), _cross_entropy, lambda p: torch.optim.Rprop(p, 1e-3))
    data = loader(x[tr], y[tr], batch=len(tr), seed=seed)
    return Run(task, data, _accuracy(x[te], y[te]), majority(y[te]), {"max_steps": 300})


class Unfreeze(LightningModule):
    """The head alone for 200 steps, then everything, with Adam."""

    def __init__(self, body, head):
        super().__init__()
        self.net = nn.Sequential(body, nn.ReLU(), head)
        body.requires_grad_(False)

    def training_step(self, batch, _):
        if self.global_step == 200:
            self.net[0].requires_grad_(True)
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def unfreeze_pretrained_body(seed):
    """A body that knows even from odd gets a new head for the ten digits; after 200 steps the body is unfrozen."""
    x, y, tr, te = _digits(seed)
    torch.manual_seed(seed + 231)
    body, old = mlp(64, 64, 32), nn.Linear(32, 2)
    opt, g = torch.optim.Adam([*body.parameters(), *old.parameters()], 3e-3), G(seed + 232)
    for _ in range(150):
        k = tr[torch.randint(len(tr), (32,), generator=g).numpy()]
        opt.zero_grad()
        F.cross_entropy(old(F.relu(body(x[k]))), y[k] % 2).backward()
        opt.step()
    data = loader(x[tr], y[tr], batch=32, seed=seed)
    module = Unfreeze(body, nn.Linear(32, 10))
    return Run(module, data, _accuracy(x[te], y[te]), majority(y[te]), {"max_steps": 600})


class Bandit(Manual):
    """Value learning with eps-greedy choices in a contextual bandit; the pay is in cents from step 300 on."""

    def __init__(self, true):
        super().__init__()
        self.net, self.true, self.seen = mlp(6, 48, 5), true, 0

    def training_step(self, batch, _):
        g = G(int(batch[0]))
        s = torch.randn(32, 6, generator=g)
        with torch.no_grad():
            best = self.net(s).argmax(1)
        a = torch.where(torch.rand(32, generator=g) < 0.2, torch.randint(5, (32,), generator=g), best)
        pay = self.true(s)[torch.arange(32), a] + 0.3 * torch.randn(32, generator=g)
        if self.seen >= 300:
            pay = 100 * pay
        self.seen += 1
        loss = F.smooth_l1_loss(self.net(s)[torch.arange(32), a], pay)
        self.log("loss", loss)
        self.update(self.optimizers(), loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def bandit_pay_in_cents(seed):
    """A contextual bandit whose rewards come on a scale a hundred times larger from the middle of the run on."""
    w = torch.randn(6, 5, generator=G(seed + 241))

    def true(s):
        return torch.tanh(s @ w) + 0.3 * (s**2) @ w.abs() / 6

    s = torch.randn(2000, 6, generator=G(seed + 242))

    def score(m):
        with torch.no_grad():
            return float(true(s).gather(1, m.net(s).argmax(1, keepdim=True)).mean())

    return Run(Bandit(true), ticks(900, seed), score, float(true(s).mean()), {"max_steps": 900})


class TwoStages(LightningModule):
    """An autoencoder first; from step 250 on the sum of squares gives way to cross-entropy of a head on the code."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec, self.head = mlp(64, 64, 24), mlp(24, 64, 64), nn.Linear(24, 10)

    def net(self, x):
        return self.head(F.relu(self.enc(x)))

    def training_step(self, batch, _):
        x, y = batch
        if self.global_step < 250:
            loss = (self.dec(F.relu(self.enc(x))) - x).pow(2).sum(1).mean()
        else:
            loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.NAdam(self.parameters(), 2e-3)


def autoencoder_then_classes(seed):
    """Pretraining as an autoencoder, then another loss: digits are classified from the code."""
    x, y, tr, te = _digits(seed)
    data = loader(x[tr], y[tr], batch=32, seed=seed)
    return Run(TwoStages(), data, _accuracy(x[te], y[te]), majority(y[te]), {"max_steps": 600})


REGIME = {"unfreeze_pretrained_body", "bandit_pay_in_cents", "autoencoder_then_classes"}
RUNS = [
    one_digit_at_a_time,
    mixture_density_negative,
    raw_diabetes_targets,
    sparse_corridor,
    warm_restarts_large_rate,
    adding_plateau,
    rprop_full_batch,
    unfreeze_pretrained_body,
    bandit_pay_in_cents,
    autoencoder_then_classes,
]
