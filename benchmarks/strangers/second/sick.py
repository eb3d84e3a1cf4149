"""Twelve sick runs. twin=True corrects the one mistake by hand."""

import math

import numpy as np
import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import nn
from torch.nn import functional as F

from common import (
    CharRNN,
    Plain,
    Run,
    T,
    acc,
    char_data,
    digits,
    loader,
    majority,
    mlp,
    predict,
    pretrained_cnn,
    r2,
    seq_ce,
    split,
    unigram,
)

SGD = torch.optim.SGD


def diabetes_raw_target(seed, twin=False):
    """MLP on diabetes, SGD momentum; the target is left in raw units (25 to 346)."""
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    tr, te = split(len(y), seed)
    x = T((x - x[tr].mean(0)) / x[tr].std(0))
    m, s = (float(y[tr].mean()), float(y[tr].std())) if twin else (0.0, 1.0)
    y = T(y)
    mod = Plain(mlp(10, 64, 64, 1), lambda p, t: F.mse_loss(p[:, 0], t), lambda p: SGD(p, 0.01, momentum=0.9))
    return Run(
        mod,
        loader(x[tr], (y[tr] - m) / s, seed=seed),
        lambda g: r2(predict(g, x[te]) * s + m, y[te]),
        0.0,
        {"max_steps": 300},
    )


class GCN(nn.Module):
    def __init__(self, a, x, d):
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("x", x)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(d, d[1:]))

    def forward(self, idx):
        h = self.x
        for k, lin in enumerate(self.layers):
            h = lin(self.a @ h)
            if k < len(self.layers) - 1:
                h = h.relu()
        return h[idx]


def graph_sum(seed, twin=False):
    """Four-layer graph network on a block model, SGD; neighbours are summed, without normalisation by degree."""
    r = np.random.RandomState(seed)
    n = 300
    y = r.randint(4, size=n)
    same = y[:, None] == y[None]
    a = (r.rand(n, n) < np.where(same, 0.25, 0.01)).astype(float)
    a = np.triu(a, 1)
    a = a + a.T + np.eye(n)
    if twin:
        a = a / a.sum(1, keepdims=True)
    x = np.eye(4)[y] + r.randn(n, 4) * 2
    x = np.c_[x, r.randn(n, 12)]
    tr, te = split(n, seed, 0.6)
    y = T(y, torch.long)
    mod = Plain(GCN(T(a), T(x), (16, 64, 64, 64, 4)), F.cross_entropy, lambda p: SGD(p, 0.1, momentum=0.9))
    return Run(
        mod,
        loader(T(tr, torch.long), y[tr], batch=60, seed=seed),
        lambda g: acc(predict(g, T(te, torch.long)), y[te]),
        majority(y[te]),
        {"max_steps": 300},
    )


def finetune_sum_loss(seed, twin=False):
    """CNN pretrained on digits 0-4, fine-tuned on all ten with nesterov; cross entropy with reduction="sum"."""
    x, y = digits()
    x = x.reshape(-1, 8, 8)
    tr, te = split(len(y), seed)
    red = "mean" if twin else "sum"
    mod = Plain(
        pretrained_cnn(seed),
        lambda p, t: F.cross_entropy(p, t, reduction=red),
        lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True),
    )
    return Run(
        mod,
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda g: acc(predict(g, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 250},
    )


def warmup_never_ends(seed, twin=False):
    """Character GRU on English, Adam; the exponential warm-up has no cap and goes on for ever."""
    tr, te, v = char_data(seed)
    cap = 60.0 if twin else math.inf
    mod = Plain(
        CharRNN(nn.GRU, v),
        seq_ce,
        lambda p: torch.optim.Adam(p, 1e-4),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(cap, 1.05**s)),
    )
    return Run(
        mod,
        loader(tr[:, :-1], tr[:, 1:], seed=seed),
        lambda g: -float(seq_ce(predict(g, te[:, :-1]), te[:, 1:])),
        unigram(tr, te, v),
        {"max_steps": 260},
    )


def momentum_999(seed, twin=False):
    """Autoencoder on digits, SGD; momentum 0.999 where 0.9 was meant."""
    x, y = digits()
    tr, te = split(len(y), seed)
    mod = Plain(
        mlp(64, 64, 12, 64, 64),
        lambda p, t: ((p - t) ** 2).sum(1).mean(),
        lambda p: SGD(p, 0.01, momentum=0.9 if twin else 0.999),
    )
    return Run(
        mod,
        loader(x[tr], x[tr], batch=64, seed=seed),
        lambda g: 1 - float(((predict(g, x[te]) - x[te]) ** 2).sum() / ((x[te] - x[te].mean(0)) ** 2).sum()),
        0.0,
        {"max_steps": 400},
    )


class SGDW(torch.optim.Optimizer):
    """SGD with momentum and decoupled weight decay, written by hand."""

    def __init__(self, params, lr, sign):
        super().__init__(params, {"lr": lr, "mu": 0.9, "wd": 0.2, "sign": sign})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                buf = self.state[p].setdefault("buf", torch.zeros_like(p))
                buf.mul_(g["mu"]).add_(p.grad)
                p.mul_(1 + g["sign"] * g["lr"] * g["wd"])
                p.add_(buf, alpha=-g["lr"])
        return loss


def decay_sign(seed, twin=False):
    """Convolutions forecast a noisy non-linear series, own SGD with decoupled decay; the decay has the wrong sign."""
    r = np.random.RandomState(seed)
    s = np.zeros(2100)
    s[0], s[1] = 0.3, 0.5
    for t in range(2, 2100):
        s[t] = 1.4 - 1.4 * 0.9 * s[t - 1] ** 2 * 0.8 + 0.3 * s[t - 2] - 0.4 + 0.02 * r.randn()
        s[t] = np.clip(s[t], -2, 2)
    s = (s - s.mean()) / s.std()
    w = np.stack([s[i : i + 17] for i in range(2080)])
    x, y = T(w[:, None, :16]), T(w[:, 16])
    net = nn.Sequential(
        nn.Conv1d(1, 16, 3),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 32),
        nn.ReLU(),
        nn.Linear(32, 1),
    )
    mod = Plain(net, lambda p, t: F.mse_loss(p[:, 0], t), lambda p: SGDW(p, 0.03, -1 if twin else 1))
    return Run(
        mod,
        loader(x[:1600], y[:1600], seed=seed),
        lambda g: r2(predict(g, x[1600:]), y[1600:]),
        0.0,
        {"max_steps": 500},
    )


class Recommender(nn.Module):
    def __init__(self, users, items):
        super().__init__()
        self.u, self.i = nn.Embedding(users, 16), nn.Embedding(items, 16)
        self.mlp = mlp(33, 64, 32, 1)

    def forward(self, ids, t):
        return self.mlp(torch.cat([self.u(ids[:, 0]), self.i(ids[:, 1]), t[:, None]], 1))[:, 0]


def timestamp_feature(seed, twin=False):
    """Recommender, embeddings and an MLP, Adam; the time of the rating goes in as seconds since 1970."""
    r = np.random.RandomState(seed)
    n = 12000
    ids = np.c_[r.randint(150, size=n), r.randint(100, size=n)]
    t = r.uniform(1.3e9, 1.6e9, n)
    bu, bi = r.randn(150), r.randn(100)
    y = 3.5 + 0.6 * bu[ids[:, 0]] + 0.8 * bi[ids[:, 1]] + 0.3 * r.randn(n) + (t - 1.45e9) / 3e8
    if twin:
        t = (t - t.mean()) / t.std()
    ids, t, y = T(ids, torch.long), T(t), T(y)
    tr, te = split(n, seed)
    mod = Plain(Recommender(150, 100), F.mse_loss, lambda p: torch.optim.Adam(p, 5e-3))
    return Run(
        mod,
        loader(ids[tr], t[tr], y[tr], batch=128, seed=seed),
        lambda g: r2(predict(g, ids[te], t[te]), y[te]),
        0.0,
        {"max_steps": 400},
    )


class Poisson(LightningModule):
    def __init__(self, lr, opt, bc=10.0):
        super().__init__()
        self.net, self.lr, self.opt, self.bc = mlp(1, 32, 32, 1, act=nn.Tanh), lr, opt, bc

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x = batch[0].clone().requires_grad_(True)
        u = self.net(x)
        du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        d2 = torch.autograd.grad(du.sum(), x, create_graph=True)[0]
        f = -(math.pi**2) * torch.sin(math.pi * x)
        edge = self.net(torch.tensor([[-1.0], [1.0]]))
        return ((d2 - f) ** 2).mean() + self.bc * (edge**2).mean()

    def configure_optimizers(self):
        return self.opt(self.parameters(), self.lr)


def poisson(seed, lr, opt, bc=10.0, steps=400):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(6400, 1, generator=g) * 2 - 1
    z = torch.linspace(-1, 1, 201)[:, None]
    return Run(
        Poisson(lr, opt, bc),
        loader(x, batch=64, seed=seed),
        lambda m: r2(predict(m, z), torch.sin(math.pi * z)),
        0.0,
        {"max_steps": steps},
    )


def pinn_rate(seed, twin=False):
    """Poisson's equation by a small tanh network, Adam; the rate is 0.5 instead of 0.005."""
    return poisson(seed, 0.005 if twin else 0.5, torch.optim.Adam)


def label_outliers(seed, twin=False):
    """Friedman's regression, plain SGD; one row in 150 has its target in thousandths (a thousand times too large)."""
    x, y = datasets.make_friedman1(2400, noise=0.5, random_state=seed)
    y = (y - 14) / 5 + 3.0
    tr, te = split(len(y), seed)
    r = np.random.RandomState(seed + 5)
    yt = y.copy()
    if not twin:
        yt[tr[r.rand(len(tr)) < 1 / 150]] *= 1000
    x, y, yt = T(x * 2 - 1), T(y), T(yt)
    mod = Plain(mlp(10, 64, 64, 1), lambda p, t: F.mse_loss(p[:, 0], t), lambda p: SGD(p, 0.05))
    return Run(mod, loader(x[tr], yt[tr], seed=seed), lambda g: r2(predict(g, x[te]), y[te]), 0.0, {"max_steps": 500})


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mlp(32, 96, 32), mlp(32, 96, 32)

    def forward(self, x):
        return F.normalize(self.a(x[:, :, :4].flatten(1)), dim=1) @ F.normalize(self.b(x[:, :, 4:].flatten(1)), dim=1).T


def infonce_overflow(seed, twin=False):
    """Two towers match left and right halves of digits, AdamW; InfoNCE by hand, exp(sim / 0.008) overflows float32."""
    x, y = digits()
    x = x.reshape(-1, 8, 8)
    tr, te = split(len(y), seed)

    def loss(sim, _):
        s = sim / 0.008
        if twin:
            return F.cross_entropy(s, torch.arange(len(s)))
        e = s.exp()
        return -(e.diagonal() / e.sum(1)).log().mean()

    def score(m):
        sim = predict(m, x[te[:128]])
        if not torch.isfinite(sim).all():
            return float("nan")
        return float((sim.topk(10, 1).indices == torch.arange(128)[:, None]).any(1).double().mean())

    mod = Plain(Towers(), loss, lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=0.05))
    return Run(mod, loader(x[tr], y[tr], batch=96, seed=seed), score, 10 / 128, {"max_steps": 400})


class ActorCritic(LightningModule):
    def __init__(self, w, critic_lr):
        super().__init__()
        self.automatic_optimization = False
        self.actor, self.critic = mlp(8, 32, 5), mlp(8, 64, 1)
        self.critic_lr = critic_lr
        self.clip = None
        self.register_buffer("w", w)

    def reward(self, x):
        return 3 * torch.tanh(x @ self.w) + 4

    def training_step(self, batch, _):
        x = batch[0]
        oa, oc = self.optimizers()
        dist = torch.distributions.Categorical(logits=self.actor(x), validate_args=False)
        a = dist.sample()
        r = self.reward(x).gather(1, a[:, None])[:, 0] + 0.5 * torch.randn(len(x))
        v = self.critic(x)[:, 0]
        la = -(dist.log_prob(a) * (r - v).detach()).mean()
        lc = ((r - v) ** 2).mean()
        for opt, loss in ((oa, la), (oc, lc)):
            opt.zero_grad()
            self.manual_backward(loss)
            if self.clip:
                self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            opt.step()
        self.log("critic", lc)

    def configure_optimizers(self):
        return torch.optim.Adam(self.actor.parameters(), 5e-3), SGD(self.critic.parameters(), self.critic_lr)


def critic_rate(seed, twin=False):
    """Actor and critic on a contextual bandit, two optimizers; the critic's SGD rate is 1.0 instead of 0.01."""
    g = torch.Generator().manual_seed(seed)
    w, x, z = (torch.randn(*s, generator=g) for s in ((8, 5), (6400, 8), (1000, 8)))
    mod = ActorCritic(w, 0.01 if twin else 1.0)

    def score(m):
        m.eval()
        with torch.no_grad():
            p = m.actor(z)
            if not torch.isfinite(p).all():
                return float("nan")
            return float(m.reward(z).gather(1, p.argmax(1, keepdim=True)).mean())

    return Run(mod, loader(x, batch=64, seed=seed), score, float(mod.reward(z).mean()), {"max_steps": 800})


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        return x + 0.5 * self.b(F.gelu(self.a(x)))


def denoiser_init(seed, twin=False):
    """Residual denoiser of signals at random noise levels, AdamW; all weights N(0, 1), the 1/sqrt(fan_in) forgotten."""
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, 32)
    n = 3200
    f, ph = torch.rand(n, 1, generator=g) * 3 + 1, torch.rand(n, 1, generator=g) * 6.28
    clean = torch.sin(6.28 * f * t + ph)
    lev = torch.rand(n, 1, generator=g) * 0.8 + 0.1
    x = torch.cat([clean + lev * torch.randn(n, 32, generator=g), lev], 1)
    net = nn.Sequential(nn.Linear(33, 64), *[Block(64) for _ in range(5)], nn.Linear(64, 32))
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=m.in_features**-0.5 if twin else 1.0)
            nn.init.zeros_(m.bias)
    mod = Plain(net, F.mse_loss, lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.01))
    return Run(
        mod,
        loader(x[:2600], clean[:2600], batch=64, seed=seed),
        lambda m: r2(predict(m, x[2600:]), clean[2600:]),
        0.0,
        {"max_steps": 400},
    )


RUNS = [
    diabetes_raw_target,
    graph_sum,
    finetune_sum_loss,
    warmup_never_ends,
    momentum_999,
    decay_sign,
    timestamp_feature,
    pinn_rate,
    label_outliers,
    infonce_overflow,
    critic_rate,
    denoiser_init,
]
REGIME = set()
