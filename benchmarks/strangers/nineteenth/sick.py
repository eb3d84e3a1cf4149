"""Programs with one mistake each; with ``twin`` the mistake is absent."""

import copy

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


class _Scaled(Manual):
    def __init__(self, net, unscale):
        super().__init__()
        self.net, self.unscale = net, unscale
        self.scale, self.good = 1.0, 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def training_step(self, batch, _):
        x, y = batch
        opt = self.optimizers()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.net(x)
        loss = F.cross_entropy(out.float(), y)
        self.log("loss", loss)
        opt.zero_grad()
        self.manual_backward(loss * self.scale)
        grads = [p.grad for p in self.parameters()]
        if not all(torch.isfinite(g).all() for g in grads):
            self.scale, self.good = max(self.scale / 2, 1.0), 0
            return
        if self.unscale:
            for g in grads:
                g.div_(self.scale)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()
        self.good += 1
        if self.good % 100 == 0:
            self.scale *= 2


def home_made_scaler(seed, twin=False):
    """Convolutions on digits in bfloat16, manual optimization, a loss scaler written by hand that doubles its scale
    every 100 good steps. The mistake: the gradients are never divided by the scale."""
    x, y, xt, yt = _digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    return Run(
        _Scaled(net, twin), loader(x, y, batch=32, seed=seed), _accuracy(xt, yt), majority(yt), {"max_steps": 2200}
    )


def _mass(policy, n, gen, noise, horizon=25, dt=0.2):
    """A mass on a line to be brought to rest at 0: states, actions, rewards."""
    x, v = torch.randn(n, generator=gen), torch.randn(n, generator=gen)
    S, A, R = [], [], []
    with torch.no_grad():
        for t in range(horizon):
            s = torch.stack([x, v, torch.full((n,), t / horizon)], 1)
            a = policy(s)[:, 0]
            if noise:
                a = a + noise * torch.randn(n, generator=gen)
            S.append(s)
            A.append(a)
            v = v + dt * a
            x = x + dt * v
            R.append(-(x**2 + 0.1 * v**2 + 0.02 * a**2) / 10)
    return torch.stack(S), torch.stack(A), torch.stack(R)


class _ActorCritic(LightningModule):
    def __init__(self, masked):
        super().__init__()
        self.pi, self.v, self.masked = mlp(3, 32, 1, act=nn.Tanh), mlp(3, 32, 1, act=nn.Tanh), masked

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

    def training_step(self, batch, _):
        gen = G(int(batch[0][0]))
        s, a, r = _mass(self.pi, 32, gen, 0.4)
        if float(torch.rand((), generator=gen)) < 1 / 50:
            t, i = int(torch.randint(25, (), generator=gen)), int(torch.randint(32, (), generator=gen))
            if not self.masked:
                r[t, i] = -1e6
        ret = r.flip(0).cumsum(0).flip(0)
        v = self.v(s)[..., 0]
        adv = ret - v.detach()
        logp = -((a - self.pi(s)[..., 0]) ** 2) / (2 * 0.4**2)
        loss = -(adv * logp).mean() + F.mse_loss(v, ret)
        self.log("loss", loss)
        return loss


def simulator_error_code(seed, twin=False):
    """An actor-critic that learns to bring a mass to rest, 32 episodes a step, SGD with momentum. The mistake: where the simulator
    fails (one episode in 1600) it gives its error code -1e6 as the reward, and nobody masks it."""

    def score(m):
        return float(_mass(m.pi, 500, G(999), 0)[2].sum(0).mean())

    trivial = float(_mass(lambda s: torch.zeros(len(s), 1), 500, G(999), 0)[2].sum(0).mean())
    return Run(_ActorCritic(twin), ticks(1200, seed), score, trivial, {"max_steps": 1200})


class _Rows(nn.Module):
    def __init__(self, hidden=40):
        super().__init__()
        self.rnn, self.out = nn.GRU(8, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x):
        return self.out(self.rnn(x.view(-1, 8, 8))[0][:, -1])


def endless_warmup(seed, twin=False):
    """A GRU reads digits row by row, Adam with a linear warm-up over 40 steps. The mistake: the warm-up's factor
    step/40 is not capped at 1, and grows for the whole training."""
    x, y, xt, yt = _digits(seed)

    def sched(opt):
        return torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, (s + 1) / 40) if twin else (s + 1) / 40)

    m = Task(_Rows(), _ce, lambda p: torch.optim.Adam(p, lr=5e-3), sched)
    return Run(m, loader(x, y, batch=32, seed=seed), _accuracy(xt, yt), majority(yt), {"max_steps": 2600})


class _VAE(nn.Module):
    def __init__(self, d, z):
        super().__init__()
        self.enc, self.dec, self.z = mlp(d, 64, 2 * z), mlp(z, 64, d), z

    def forward(self, x):
        mu, lv = self.enc(x).split(self.z, 1)
        out = self.dec(mu + torch.randn_like(mu) * (0.5 * lv).exp())
        return out, mu, lv


def vae_summed_batch(seed, twin=False):
    """A VAE of the digits' deviations from their mean, batches of 64, SGD with Nesterov momentum at a rate for a mean
    over the records. The mistake: the loss is summed over the batch as well as over the pixels."""
    x, _, xt, _ = _digits(seed)
    x, xt = x - x.mean(0), xt - x.mean(0)

    def loss(m, b):
        out, mu, lv = m.net(b[0])
        rec = 5 * ((out - b[0]) ** 2).sum(1)
        kl = 0.5 * (mu**2 + lv.exp() - 1 - lv).sum(1)
        return (rec + kl).mean() if twin else (rec + kl).sum()

    @torch.no_grad()
    def score(m):
        return r2(m.net.dec(m.net.enc(xt)[:, : m.net.z]), xt)

    m = Task(_VAE(64, 8), loss, lambda p: torch.optim.SGD(p, lr=3e-3, momentum=0.9, nesterov=True))
    return Run(m, loader(x, batch=64, seed=seed), score, 0.0, {"max_steps": 2900})


def missing_code_online(seed, twin=False):
    """Wines, learnt one bottle at a time, SGD with momentum. The mistake: in four records a missing measurement is
    coded as -9999, and goes in so."""
    x, y = datasets.load_wine(return_X_y=True)
    tr, te = split(len(x), seed)
    x, m, s = standard(x, tr)
    x, y = T(x), L(y)
    g = np.random.RandomState(seed + 5)
    for i in g.choice(tr, 4, replace=False):
        j = g.randint(13)
        x[i, j] = 0.0 if twin else float((-9999 - m[j]) / s[j])
    task = Task(mlp(13, 32, 16, 3), _ce, lambda p: torch.optim.SGD(p, lr=3e-3, momentum=0.9))
    return Run(
        task,
        loader(x[tr], y[tr], batch=1, seed=seed),
        _accuracy(x[te], y[te]),
        majority(y[te]),
        {"max_steps": 3000},
    )


class _GCN(nn.Module):
    def __init__(self, a, *d):
        super().__init__()
        self.register_buffer("a", a)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(d[:-1], d[1:]))

    def forward(self, x):
        for k, layer in enumerate(self.layers):
            x = layer(self.a @ x)
            if k < len(self.layers) - 1:
                x = F.relu(x)
        return x


def graph_not_normalised(seed, twin=False):
    """A graph net of three layers tells the communities of a network with hubs, all nodes at once, SGD with momentum.
    The mistake: neighbours are summed; the division by the roots of the degrees is forgotten."""
    g = np.random.RandomState(seed + 40)
    n = 360
    y = g.randint(3, size=n)
    pop = np.minimum(g.pareto(2.0, n) + 0.5, 5)
    p = np.where(y[:, None] == y[None], 0.05, 0.008) * pop[:, None] * pop[None]
    a = np.triu(g.rand(n, n) < p, 1).astype(float)
    a = a + a.T + np.eye(n)
    if twin:
        d = a.sum(1) ** -0.5
        a = a * d[:, None] * d[None]
    x = T(g.randn(n, 8) + 0.7 * np.eye(3, 8)[y])
    y = L(y)
    tr, te = split(n, seed, 0.5)

    def loss(m, b):
        rows = b[0][0]
        return F.cross_entropy(m.net(x)[rows], y[rows])

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x)[te], y[te])

    gen = G(seed + 7)
    rows = torch.stack([L(tr)[torch.randperm(len(tr), generator=gen)[:60]] for _ in range(2200)])
    m = Task(_GCN(T(a), 8, 32, 32, 3), loss, lambda q: torch.optim.SGD(q, lr=0.05, momentum=0.9, weight_decay=1e-3))
    return Run(m, loader(rows, batch=1, seed=seed), score, majority(y[te]), {"max_steps": 2200})


def survival_in_days(seed, twin=False):
    """Survival times with censoring, an exponential model with a log-hazard per patient, SGD with momentum. The
    mistake: the times go in as days, where all the rest was made for years."""
    g = np.random.RandomState(seed + 60)
    n = 1600
    x = g.randn(n, 6)
    lh = 0.9 * x[:, 0] - 0.6 * x[:, 1] + 0.8 * np.maximum(x[:, 2], 0) - 0.7
    t = g.exponential(np.exp(-lh))
    c = g.exponential(4.0, n)
    d = (t <= c).astype(float)
    unit = 1.0 if twin else 365.0
    x, t, d, lh = T(x), T(np.minimum(t, c) * unit), T(d), T(lh - np.log(unit))
    tr, te = split(n, seed)

    def loss(m, b):
        o = m.net(b[0])[:, 0]
        return (o.exp() * b[1] - b[2] * o).mean()

    @torch.no_grad()
    def score(m):
        return r2(m.net(x[te]), lh[te])

    def sched(o):
        return torch.optim.lr_scheduler.CosineAnnealingLR(o, 2700)

    m = Task(mlp(6, 64, 64, 1), loss, lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), sched)
    return Run(m, loader(x[tr], t[tr], d[tr], batch=16, seed=seed), score, 0.0, {"max_steps": 2700})


def resumed_with_old_rate(seed, twin=False):
    """A digits net, trained with SGD at 0.3, goes on with AdamW at 3e-4. The mistake: the parameter groups of the SGD
    checkpoint are copied into the new optimizer, with their rate."""
    x, y, xt, yt = _digits(seed)
    net = mlp(64, 64, 64, 10)
    old = torch.optim.SGD(net.parameters(), lr=0.3)
    gen = G(seed + 3)
    for _ in range(150):
        i = torch.randint(len(x), (32,), generator=gen)
        old.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        old.step()
    groups = copy.deepcopy(old.state_dict()["param_groups"])

    def opt(p):
        new = torch.optim.AdamW(p, lr=3e-4, weight_decay=0.01)
        if not twin:
            for a, b in zip(new.param_groups, groups):
                a.update({k: v for k, v in b.items() if k in a and k not in ("params", "weight_decay")})
        return new

    return Run(Task(net, _ce, opt), loader(x, y, seed=seed), _accuracy(xt, yt), majority(yt), {"max_steps": 2900})


class _Reader(nn.Module):
    def __init__(self, vocab=24, d=24):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Parameter(0.1 * torch.randn(14, d))
        self.qkv = nn.Linear(d, 3 * d)
        self.n1, self.out = nn.LayerNorm(d), mlp(d, 32, 3)

    def forward(self, ids, n):
        h = self.emb(ids) + self.pos
        pad = torch.arange(14)[None] >= n[:, None]
        q, k, v = self.qkv(h).chunk(3, -1)
        w = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(pad[:, None], -torch.inf)
        h = self.n1(h + w.softmax(-1) @ v)
        keep = (~pad)[..., None]
        return self.out((h * keep).sum(1) / keep.sum(1).clamp_min(1))


def empty_sentences(seed, twin=False):
    """Attention over padded sentences, Adam, batches of 24: which of three kinds of words comes most often. The
    mistake: one record in 300 is empty, all of it is masked, and its softmax is over nothing."""
    g = np.random.RandomState(seed + 80)
    n = 4000
    ids, size = g.randint(24, size=(n, 14)), g.randint(1, 15, size=n)
    live = np.arange(14)[None] < size[:, None]
    counts = np.stack([((ids % 3 == k) & live).sum(1) for k in range(3)], 1)
    y = counts.argmax(1)
    tr, te = split(n, seed)
    size[tr[g.rand(len(tr)) < 1 / 300]] *= 1 if twin else 0
    ids, size, y = L(ids), L(size), L(y)

    def loss(m, b):
        return F.cross_entropy(m.net(b[0], b[1]), b[2])

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(ids[te], size[te]), y[te])

    m = Task(_Reader(), loss, lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(
        m, loader(ids[tr], size[tr], y[tr], batch=24, seed=seed), score, majority(y[te]), {"max_steps": 1500}
    )


RUNS = [
    home_made_scaler,
    simulator_error_code,
    endless_warmup,
    vae_summed_batch,
    missing_code_online,
    graph_not_normalised,
    survival_in_days,
    resumed_with_old_rate,
    empty_sentences,
]
