"""Right programs that look alarming or unusual."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import nn


def _digits(seed):
    x, y = datasets.load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(x / 16.0), L(y)
    return x[tr], y[tr], x[te], y[te]


def _accuracy(x, y):
    @torch.no_grad()
    def score(m):
        m.eval()
        return accuracy(m.net(x), y)

    return score


def _ce(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


def saw_tooth_rate(seed):
    """Digits by SGD, batches of 16, the rate going up and down between 0.01 and 0.7 nine times."""
    x, y, xt, yt = _digits(seed)

    def sched(o):
        return torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.7, step_size_up=150, cycle_momentum=False)

    m = Task(mlp(64, 256, 128, 10), _ce, lambda p: torch.optim.SGD(p, lr=0.01), sched)
    return Run(m, loader(x, y, batch=16, seed=seed), _accuracy(xt, yt), majority(yt), {"max_steps": 2700})


class _Flow(nn.Module):
    def __init__(self, k=6):
        super().__init__()
        self.parts = nn.ModuleList(mlp(1, 32, 2, act=nn.Tanh) for _ in range(k))

    def forward(self, x):
        z, ld = x, 0.0
        for i, part in enumerate(self.parts):
            a, b = z[:, i % 2 : i % 2 + 1], z[:, 1 - i % 2 : 2 - i % 2]
            s, t = part(a).split(1, 1)
            s = 3 * torch.tanh(s / 3)
            b = b * s.exp() + t
            z = torch.cat([a, b] if i % 2 == 0 else [b, a], 1)
            ld = ld + s[:, 0]
        return -0.5 * (z**2).sum(1) - math.log(2 * math.pi) + ld


def flow_of_small_moons(seed):
    """A flow of six couplings fitted to two thin, small moons: the loss goes from about 2 to well below 0."""
    x, _ = datasets.make_moons(3000, noise=0.04, random_state=seed + 10)
    x = T((x - x.mean(0)) * 0.2)
    tr, te = x[:2400], x[2400:]
    cov = torch.cov(tr.T)
    trivial = float(torch.distributions.MultivariateNormal(tr.mean(0), cov).log_prob(te).mean())

    @torch.no_grad()
    def score(m):
        return float(m.net(te).mean())

    def sched(o):
        return torch.optim.lr_scheduler.CosineAnnealingLR(o, 1500)

    m = Task(_Flow(), lambda m, b: -m.net(b[0]).mean(), lambda p: torch.optim.Adam(p, lr=5e-3), sched)
    return Run(m, loader(tr, batch=64, seed=seed), score, trivial, {"max_steps": 1500})


def _walk(net, n, gen, cells=8, horizon=22):
    pos = torch.zeros(n, dtype=torch.long)
    done = torch.zeros(n, dtype=torch.bool)
    S, A, M = [], [], []
    with torch.no_grad():
        for _ in range(horizon):
            s = F.one_hot(pos, cells).float()
            p = torch.sigmoid(net(s)[:, 0])
            a = (torch.rand(n, generator=gen) < p).long()
            S.append(s)
            A.append(a)
            M.append(~done)
            pos = torch.where(done, pos, (pos + 2 * a - 1).clamp(0, cells - 1))
            done = done | (pos == cells - 1)
    return torch.stack(S), torch.stack(A), torch.stack(M).float(), done.float()


class _Corridor(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.mean = mlp(8, 32, 1, act=nn.Tanh), 0.0

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)

    def training_step(self, batch, _):
        s, a, live, won = _walk(self.net, 16, G(int(batch[0][0])))
        logp = -F.binary_cross_entropy_with_logits(self.net(s)[..., 0], a.float(), reduction="none")
        loss = -((won - self.mean) * (logp * live).sum(0)).mean()
        self.mean = 0.95 * self.mean + 0.05 * float(won.mean())
        self.log("loss", loss)
        return loss


def corridor_with_a_prize(seed):
    """REINFORCE in a corridor of eight cells, 16 walks a step; the only reward is 1 at the far end, reached by a
    quarter of the walks at first; once all reach it the gradient is all but nothing."""

    def score(m):
        return float(_walk(m.net, 1000, G(77))[3].mean())

    trivial = float(_walk(lambda s: torch.zeros(len(s), 1), 1000, G(77))[3].mean())
    return Run(_Corridor(), ticks(1300, seed), score, trivial, {"max_steps": 1300})


def _energy(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


class _GAN(Manual):
    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(6, 64, 64, 2), mlp(2, 64, 64, 1)
        self.g.requires_grad_(True)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.g.parameters(), lr=1e-3, betas=(0.5, 0.99)),
            torch.optim.Adam(self.d.parameters(), lr=2e-3, betas=(0.5, 0.99)),
        )

    def training_step(self, batch, _):
        og, od = self.optimizers()
        x = batch[0]
        fake = self.g(torch.randn(len(x), 6))
        real = x + 0.1 * torch.randn_like(x)
        ld = F.softplus(-self.d(real)).mean() + F.softplus(self.d((fake + 0.1 * torch.randn_like(x)).detach())).mean()
        self.update(od, ld)
        lg = F.softplus(-self.d(fake)).mean()
        self.update(og, lg)
        self.log_dict({"d": ld, "g": lg})


def gan_of_three_clouds(seed):
    """A GAN of three clouds in the plane, manual optimization with two Adams: losses that go up and down for ever."""
    g = np.random.RandomState(seed + 20)
    c = np.array([[1.5, 0.0], [-0.8, 1.3], [-0.8, -1.3]])
    x = T(c[g.randint(3, size=4000)] + 0.3 * g.randn(4000, 2))
    tr, te = x[:3000], x[3000:]
    base = _energy(tr.mean(0, keepdim=True), te)

    @torch.no_grad()
    def score(m):
        return 1 - _energy(m.g(torch.randn(1000, 6, generator=G(5))), te) / base

    return Run(_GAN(), loader(tr, batch=64, seed=seed), score, 0.0, {"max_steps": 3000})


def cauchy_like_noise_online(seed):
    """One record at a time, targets with noise of Student's t with 1.2 degrees of freedom, absolute error, SGD with
    a falling rate: single losses in the hundreds that are right."""
    g = np.random.RandomState(seed + 30)
    x = g.randn(3800, 5)
    f = x[:, 0] - 2 * x[:, 1] + np.sin(2 * x[:, 2]) + np.abs(x[:, 3])
    y = f + 0.3 * g.standard_t(1.2, 3800)
    x, y, f = T(x), T(y), T(f)

    def loss(m, b):
        return (m.net(b[0])[:, 0] - b[1]).abs().mean()

    @torch.no_grad()
    def score(m):
        return r2(m.net(x[3000:]), f[3000:])

    def sched(o):
        return torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.02, 3000)

    m = Task(mlp(5, 32, 1), loss, lambda p: torch.optim.SGD(p, lr=0.03), sched)
    return Run(m, loader(x[:3000], y[:3000], batch=1, seed=seed), score, 0.0, {"max_steps": 3000})


def targets_in_cents(seed):
    """Diabetes scores times ten thousand, a linear model, squared error (of about 1e12), Adam at a rate of 8000 that
    falls along a cosine."""
    x, y = datasets.load_diabetes(return_X_y=True)
    tr, te = split(len(x), seed)
    x = T(standard(x, tr)[0])
    y = T(y * 1e4)

    def loss(m, b):
        return F.mse_loss(m.net(b[0])[:, 0], b[1])

    @torch.no_grad()
    def score(m):
        return r2(m.net(x[te]), y[te])

    def sched(o):
        return torch.optim.lr_scheduler.CosineAnnealingLR(o, 3000)

    m = Task(nn.Linear(10, 1), loss, lambda p: torch.optim.Adam(p, lr=8000.0), sched)
    return Run(m, loader(x[tr], y[tr], batch=16, seed=seed), score, 0.0, {"max_steps": 3000})


class _Memory(LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 6)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])

    @staticmethod
    def make(n, length, gen):
        """The first symbol is to be told at the end; after it come others, marked as noise."""
        s = torch.randint(6, (n, length), generator=gen)
        x = torch.zeros(n, length, 8)
        x[..., :6] = F.one_hot(s, 6).float()
        x[:, 0, 6] = 1
        x[:, -1, 7] = 1
        return x, s[:, 0]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)

    def training_step(self, batch, _):
        x, y = self.make(32, (4, 8, 14, 22)[min(self.global_step // 300, 3)], G(int(batch[0][0])))
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss


def longer_and_longer(seed):
    """A GRU is to keep the first symbol of a sequence, whose length grows from 4 to 22 in four lessons."""
    m = _Memory()

    @torch.no_grad()
    def score(m):
        x, y = m.make(800, 22, G(seed + 55))
        return accuracy(m(x), y)

    return Run(m, ticks(1300, seed), score, 1 / 6, {"max_steps": 1300})


class _FineTuned(LightningModule):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(96, 10)
        nn.init.zeros_(self.head.weight)
        self.body.requires_grad_(False)

    def net(self, x):
        return self.head(self.body(x))

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [{"params": self.head.parameters(), "lr": 1e-2}, {"params": self.body.parameters(), "lr": 2e-3}]
        )

    def training_step(self, batch, _):
        if self.global_step == 500:
            self.body.requires_grad_(True)
        loss = _ce(self, batch)
        self.log("loss", loss)
        return loss


def thawed_body(seed):
    """A net trained on the digits below 5 gets a new head for all ten; its body is frozen for 500 steps, then thawed."""
    x, y, xt, yt = _digits(seed)
    body = nn.Sequential(nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 96), nn.ReLU())
    old = nn.Sequential(body, nn.Linear(96, 5))
    opt, gen = torch.optim.Adam(old.parameters(), lr=3e-3), G(seed + 4)
    xs, ys = x[y < 5], y[y < 5]
    for _ in range(400):
        i = torch.randint(len(xs), (32,), generator=gen)
        opt.zero_grad()
        F.cross_entropy(old(xs[i]), ys[i]).backward()
        opt.step()
    return Run(_FineTuned(body), loader(x, y, seed=seed), _accuracy(xt, yt), majority(yt), {"max_steps": 2600})


def parity_after_a_plateau(seed):
    """The parity of three of sixteen bits, fresh data at every step, Adam: nothing is learnt for long, then all."""
    gen = G(seed + 11)
    x = torch.randint(2, (152000, 16), generator=gen).float() * 2 - 1
    y = (x[:, 1] * x[:, 5] * x[:, 12] > 0).long()
    m = Task(mlp(16, 128, 2), _ce, lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(
        m,
        loader(x[:150000], y[:150000], batch=64, seed=seed),
        _accuracy(x[150000:], y[150000:]),
        majority(y[150000:]),
        {"max_steps": 2300},
    )


RUNS = [
    saw_tooth_rate,
    flow_of_small_moons,
    corridor_with_a_prize,
    gan_of_three_clouds,
    cauchy_like_noise_online,
    targets_in_cents,
    longer_and_longer,
    thawed_body,
    parity_after_a_plateau,
]
REGIME = {"longer_and_longer"}
