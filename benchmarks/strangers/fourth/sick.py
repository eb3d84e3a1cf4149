"""Twelve-odd sick runs: mistakes people really make. twin=True is the same program with the mistake corrected."""

import inspect
import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import nn

from common import *  # noqa: F403


def quiet(f):
    """Scores without gradients, in eval mode."""

    def g(m):
        m.eval().float()
        with torch.no_grad():
            return f(m)

    return g


def digits(seed, image=False):
    d = datasets.load_digits()
    tr, te = split(len(d.target), seed)
    x = T(d.data / 16 if not image else d.data.reshape(-1, 1, 8, 8) / 16)
    y = L(d.target)
    return x[tr], y[tr], x[te], y[te]


def cnn(bn=False):
    def b(i, o):
        return [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if bn else []), nn.ReLU()]

    return nn.Sequential(*b(1, 12), *b(12, 16), nn.MaxPool2d(2), *b(16, 24), nn.Flatten(), nn.Linear(24 * 16, 10))


def ce(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


TEXT = None


def text():
    global TEXT
    if TEXT is None:
        docs = [
            f.__doc__
            for n, f in sorted(vars(np).items())
            if callable(f) and inspect.getdoc(f) and len(f.__doc__) > 1500
        ]
        TEXT = "\n".join(" ".join(d.split()) for d in docs)[:160_000]
    return TEXT


# 1. Graph: node classification on the kNN graph of digits; the adjacency is summed, not averaged.
class GCN(nn.Module):
    def __init__(self, adj, d, h, c, layers):
        super().__init__()
        self.register_buffer("adj", adj, persistent=False)
        dims = [d] + [h] * (layers - 1) + [c]
        self.lins = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x):
        for i, l in enumerate(self.lins):
            x = l(self.adj @ x)
            if i < len(self.lins) - 1:
                x = F.relu(x)
        return x


def gcn_sum_adjacency(seed, twin):
    from sklearn.neighbors import kneighbors_graph

    d = datasets.load_digits()
    keep = np.random.RandomState(seed).permutation(len(d.target))[:700]
    x, y = T(d.data[keep] / 16), L(d.target[keep])
    a = T(kneighbors_graph(x.numpy(), 12).toarray())
    a = ((a + a.T) > 0).float() + torch.eye(len(a))
    if twin:
        a = a / a.sum(1, keepdim=True)
    tr, te = split(len(y), seed, 0.5)
    net = GCN(a, 64, 48, 10, 3)

    def loss(m, b):
        return F.cross_entropy(m.net(x)[tr], y[tr])

    return Run(
        Task(net, loss, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ticks(16, seed),
        quiet(lambda m: accuracy(m.net(x)[te], y[te])),
        majority(y[te]),
        {"max_steps": 400},
    )


# 2. Tabular: log of columns that hold exact zeros -> -inf in 13 patients.
def log_of_zero(seed, twin):
    d = datasets.load_breast_cancer()
    raw = d.data
    with np.errstate(divide="ignore"):
        lg = np.log(raw + (1e-3 if twin else 0))
    tr, te = split(len(raw), seed, 0.7)
    ok = np.isfinite(lg).all(1)
    ref = tr[ok[tr]]
    m, s = lg[ref].mean(0), lg[ref].std(0)
    x, y = T((lg - m) / s), L(d.target)
    te = te[(raw[te] > 0).all(1)]
    return Run(
        Task(mlp(30, 64, 64, 2), ce, lambda p: torch.optim.AdamW(p, lr=3e-3)),
        loader(x[tr], y[tr], batch=16, seed=seed),
        quiet(lambda m: accuracy(m.net(x[te]), y[te])),
        majority(y[te]),
        {"max_steps": 250, "accumulate_grad_batches": 2},
    )


# 3. Language: a post-norm transformer, NAdam at 0.03, no warm-up.
class LM(nn.Module):
    def __init__(self, v, d=48, n=48, layers=3, pre=False):
        super().__init__()
        self.emb, self.pos = nn.Embedding(v, d), nn.Parameter(torch.randn(n, d) * 0.02)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 4, 2 * d, 0.0, batch_first=True, norm_first=pre),
            layers,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(d, v)
        self.register_buffer("mask", torch.triu(torch.full((n, n), -math.inf), 1), persistent=False)

    def forward(self, x):
        n = x.shape[1]
        return self.head(self.blocks(self.emb(x) + self.pos[:n], mask=self.mask[:n, :n]))


def lm_loss(m, b):
    z = m.net(b[0][:, :-1])
    return F.cross_entropy(z.reshape(-1, z.shape[-1]), b[0][:, 1:].reshape(-1))


def chars(seed, lower=False):
    t = text().lower() if lower else text()
    v = sorted(set(t))
    ids = L([v.index(c) for c in t])
    w = ids[: len(ids) // 49 * 49].reshape(-1, 49)
    tr, te = split(len(w), seed, 0.9)
    p = torch.bincount(w[tr].reshape(-1), minlength=len(v)).float()
    p = (p + 1) / (p + 1).sum()
    return v, w[tr], w[te], float(p.log()[w[te].reshape(-1)].mean())


def charlm_nadam_rate(seed, twin):
    v, tr, te, trivial = chars(seed)
    return Run(
        Task(LM(len(v)), lm_loss, lambda p: torch.optim.NAdam(p, lr=2e-3 if twin else 0.1)),
        loader(tr, batch=16, seed=seed),
        quiet(lambda m: -float(lm_loss(m, (te,)))),
        trivial,
        {"max_steps": 500},
    )


# 4. Fine-tuning from an int8 export whose scales were not applied.
def int8_without_scale(seed, twin):
    x, y, xt, yt = digits(seed, True)
    net = cnn()
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    old = y < 5
    g = G(seed)
    for _ in range(200):
        i = torch.randint(int(old.sum()), (64,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[old][i]), y[old][i]).backward()
        opt.step()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                s = p.abs().max() / 127
                q = (p / s).round()
                p.copy_(q * s if twin else q)
    return Run(
        Task(net, ce, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True)),
        loader(x, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 500},
    )


# 5. RL: actor-critic bandit, rewards in cents; two optimizers by hand.
class Bandit(Manual):
    def __init__(self, unit):
        super().__init__()
        self.actor, self.critic, self.unit = mlp(64, 64, 10), mlp(64, 64, 1), unit

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.actor.parameters(), 0.3),
            torch.optim.SGD(self.critic.parameters(), 0.05, momentum=0.9),
        ]

    def training_step(self, b, _):
        a, c = self.optimizers()
        x, y = b
        dist = torch.distributions.Categorical(logits=self.actor(x), validate_args=False)
        act = dist.sample()
        r = (act == y).float() * self.unit
        v = self.critic(x).squeeze(1)
        self.update(c, F.mse_loss(v, r))
        self.update(a, -(dist.log_prob(act) * (r - v.detach())).mean() - 0.001 * self.unit * dist.entropy().mean())


def bandit_reward_in_cents(seed, twin):
    x, y, xt, yt = digits(seed)
    return Run(
        Bandit(1.0 if twin else 1000.0),
        loader(x, y, batch=64, seed=seed),
        quiet(lambda m: accuracy(m.actor(xt), yt)),
        majority(yt),
        {"max_steps": 2400},
    )


# 6. Physics-informed: u'' = f by LBFGS at rate 1 without a line search, new random points at each step.
def pinn_lbfgs_no_search(seed, twin):
    u = lambda x: torch.sin(3 * math.pi * x) + 0.5 * torch.sin(math.pi * x)
    f = lambda x: -(9 * torch.sin(3 * math.pi * x) + 0.5 * torch.sin(math.pi * x)) * math.pi**2
    xs = torch.linspace(0, 1, 128)[:, None]
    ends = torch.tensor([[0.0], [1.0]])

    def loss(m, b):
        x = torch.rand(256 if twin else 24, 1, generator=G(int(b[0][0]) if not twin else seed)).requires_grad_()
        y = m.net(x)
        d = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        dd = torch.autograd.grad(d.sum(), x, create_graph=True)[0]
        return ((dd - f(x)) ** 2).mean() + 100 * (m.net(ends) ** 2).sum()

    ls = "strong_wolfe" if twin else None
    return Run(
        Task(
            mlp(1, 24, 24, 1, act=nn.Tanh), loss, lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=4, line_search_fn=ls)
        ),
        ticks(300, seed),
        quiet(lambda m: r2(m.net(xs), u(xs))),
        0.0,
        {"max_steps": 250},
    )


# 7. Schedule: LambdaLR returns the step, not a share: warm-up that never ends.
def warmup_never_ends(seed, twin):
    x, y, xt, yt = digits(seed, True)
    f = (lambda s: min(1.0, (s + 1) / 60)) if twin else (lambda s: s + 1.0)
    return Run(
        Task(cnn(), ce, lambda p: torch.optim.AdamW(p, 2e-3), lambda o: torch.optim.lr_scheduler.LambdaLR(o, f)),
        loader(x, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 1000},
    )


# 8. Home-made loss scaling; nobody unscales before SGD steps.
class Scaled(Manual):
    def __init__(self, net, unscale):
        super().__init__()
        self.net, self.unscale = net, unscale

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)

    def training_step(self, b, _):
        o = self.optimizers()
        loss = F.smooth_l1_loss(self.net(b[0]), b[1])
        self.log("loss", loss)
        o.zero_grad()
        self.manual_backward(loss * 4096)
        if self.unscale:
            for p in self.net.parameters():
                p.grad /= 4096
        if self.clip is not None:
            self.clip_gradients(o, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        o.step()


def scale_never_undone(seed, twin):
    d = datasets.load_diabetes()
    tr, te = split(len(d.target), seed)
    x, _, _ = standard(d.data, tr)
    y = (d.target - d.target[tr].mean()) / d.target[tr].std()
    x, y = T(x), T(y)[:, None]
    return Run(
        Scaled(mlp(10, 32, 32, 1), twin),
        loader(x[tr], y[tr], batch=32, seed=seed),
        quiet(lambda m: r2(m.net(x[te]), y[te])),
        0.0,
        {"max_steps": 300},
    )


# 10. Diffusion on digits: losses weighted by the SNR, which is 1/0 at the first time.
class Eps(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(64 + 16, 160, 160, 64, act=nn.SiLU)

    def forward(self, x, t):
        f = torch.exp(torch.linspace(0, 5, 8))
        e = t[:, None] * f
        return self.net(torch.cat([x, e.sin(), e.cos()], 1))


def diffusion_snr_of_zero(seed, twin):
    x, _, xt, _ = digits(seed)
    x, xt = x * 2 - 1, xt * 2 - 1
    beta = torch.linspace(0, 0.06, 200)
    ab = torch.cumprod(1 - beta, 0)
    snr = ab / (1 - ab)
    w = snr.clamp(max=5.0) if twin else snr

    def noised(x, g=None):
        t = torch.randint(len(ab), (len(x),), generator=g)
        e = torch.randn(x.shape, generator=g)
        return ab[t].sqrt()[:, None] * x + (1 - ab[t]).sqrt()[:, None] * e, t, e

    def loss(m, b):
        z, t, e = noised(b[0])
        return (w[t] * ((m.net(z, t / 200) - e) ** 2).mean(1)).mean()

    def score(m):
        z, t, e = noised(xt.repeat(4, 1), G(7))
        return r2(m.net(z, t / 200), e)

    return Run(
        Task(Eps(), loss, lambda p: torch.optim.Adam(p, 1e-3)),
        loader(x, batch=64, seed=seed),
        quiet(score),
        0.0,
        {"max_steps": 900},
    )


# 11. Time series: NetCDF's fill value 9.97e36 left in 1 % of the windows; L1 loss, RAdam.
def fill_value_left_in(seed, twin):
    rs = np.random.RandomState(seed)
    n = 6000
    t = np.arange(n)
    s = np.sin(t / 7) + 0.5 * np.sin(t / 23 + 1) + np.cumsum(rs.randn(n)) * 0.01 + rs.randn(n) * 0.1
    w = np.lib.stride_tricks.sliding_window_view(s, 25)[::2].copy()
    tr, te = np.arange(2000), np.arange(2100, len(w))
    bad = rs.permutation(tr)[:20]
    x, y = w[:, :24].copy(), w[:, 24:]
    if not twin:
        x[bad, rs.randint(24, size=20)] = 9.96921e36
    x, y = T(x)[:, None], T(y)
    net = nn.Sequential(
        nn.Conv1d(1, 16, 5), nn.GELU(), nn.Conv1d(16, 16, 5), nn.GELU(), nn.Flatten(), nn.Linear(256, 1)
    )
    return Run(
        Task(net, lambda m, b: F.l1_loss(m.net(b[0]), b[1]), lambda p: torch.optim.RAdam(p, 2e-3)),
        loader(x[tr], y[tr], batch=32, seed=seed),
        quiet(lambda m: r2(m.net(x[te]), y[te])),
        0.0,
        {"max_steps": 600},
    )


# 12. True half precision: log(softmax + 1e-8), and 1e-8 is 0 in float16.
def half_log_eps(seed, twin):
    x, y, xt, yt = digits(seed, True)
    net = nn.Sequential(nn.Flatten(), *mlp(64, 96, 64, 10))

    def loss(m, b):
        z = m.net(b[0].half())
        if twin:
            return F.cross_entropy(z, b[1])
        return F.nll_loss(torch.log(torch.softmax(z, 1) + 1e-8), b[1])

    return Run(
        Task(net, loss, lambda p: torch.optim.Adam(p, 3e-3, eps=1e-4)),
        loader(x * 16, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt * 16), yt)),
        majority(yt),
        {"max_steps": 700, "precision": "16-true"},
    )


# 13. Vocabulary extended with uninitialised memory; pretrained on lower case, trained on mixed case; Adagrad.
def new_tokens_uninitialised(seed, twin):
    v, tr, te, trivial = chars(seed)
    t = text()
    low = sorted(set(t.lower()))
    fold = L([low.index(c.lower()) for c in v])
    net = LM(len(low), layers=2, pre=True)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    g = G(seed)
    for _ in range(250):
        i = torch.randint(len(tr), (16,), generator=g)
        opt.zero_grad()
        z = net(fold[tr[i]][:, :-1])
        F.cross_entropy(z.reshape(-1, len(low)), fold[tr[i]][:, 1:].reshape(-1)).backward()
        opt.step()
    emb, head = nn.Embedding(len(v), 48), nn.Linear(48, len(v))
    with torch.no_grad():
        for i, c in enumerate(v):
            if c in low:
                emb.weight[i], head.weight[i], head.bias[i] = (
                    net.emb.weight[low.index(c)],
                    net.head.weight[low.index(c)],
                    net.head.bias[low.index(c)],
                )
            elif twin:
                emb.weight[i], head.weight[i], head.bias[i] = (
                    net.emb.weight.mean(0),
                    net.head.weight.mean(0),
                    net.head.bias.mean(),
                )
            else:  # what torch.empty happened to hold
                emb.weight[i] = torch.randn(48, generator=g) * 3e4
                head.weight[i], head.bias[i] = torch.randn(48, generator=g) * 3e4, 0.0
    net.emb, net.head = emb, head
    return Run(
        Task(net, lm_loss, lambda p: torch.optim.Adagrad(p, 0.01)),
        loader(tr, batch=16, seed=seed),
        quiet(lambda m: -float(lm_loss(m, (te,)))),
        trivial,
        {"max_steps": 300},
    )


# 14. Recommender: nn.Embedding's N(0, 1) in 64 dimensions, ratings 1 to 5, SGD with momentum.
def ratings_default_embedding(seed, twin):
    rs = np.random.RandomState(seed)
    nu, ni = 300, 200
    r = np.clip(3.5 + (rs.randn(nu, 3) @ rs.randn(3, ni)) * 0.6, 1, 5)
    uu, ii = np.divmod(rs.permutation(nu * ni)[:20000], ni)
    y = T(r[uu, ii] + 0.1 * rs.randn(20000))
    u, i = L(uu), L(ii)
    tr, te = slice(0, 16000), slice(16000, None)

    class MF(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.i = nn.Embedding(nu, 64), nn.Embedding(ni, 64)
            self.bu, self.bi, self.c = nn.Embedding(nu, 1), nn.Embedding(ni, 1), nn.Parameter(torch.zeros(()))
            if twin:
                for e in (self.u, self.i, self.bu, self.bi):
                    nn.init.normal_(e.weight, std=0.1)

        def forward(self, u, i):
            return (self.u(u) * self.i(i)).sum(1) + self.bu(u)[:, 0] + self.bi(i)[:, 0] + self.c

    return Run(
        Task(MF(), lambda m, b: F.mse_loss(m.net(b[0], b[1]), b[2]), lambda p: torch.optim.SGD(p, 1.0, momentum=0.9)),
        loader(u[tr], i[tr], y[tr], batch=128, seed=seed),
        quiet(lambda m: r2(m.net(u[te], i[te]), y[te])),
        0.0,
        {"max_steps": 1200},
    )


# 15. ReLU RNN over a digit in 16 pieces of four pixels; recurrent matrix drawn with torch.randn. Adamax.
class Rnn(nn.Module):
    def __init__(self, good):
        super().__init__()
        self.rnn, self.out = nn.RNN(4, 48, nonlinearity="relu", batch_first=True), nn.Linear(48, 10)
        with torch.no_grad():
            if good:
                self.rnn.weight_hh_l0.copy_(torch.eye(48))
            else:
                self.rnn.weight_hh_l0.copy_(torch.randn(48, 48))
            nn.init.normal_(self.rnn.weight_ih_l0, std=0.1)

    def forward(self, x):
        return self.out(self.rnn(x.reshape(len(x), 16, 4))[0][:, -1])


def rnn_randn_recurrence(seed, twin):
    x, y, xt, yt = digits(seed)
    return Run(
        Task(Rnn(twin), ce, lambda p: torch.optim.Adamax(p, 2e-3)),
        loader(x, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 800},
    )


# 16. VAE on raw pixels 0..16, summed squared error, exp(logvar) unbounded, RMSprop at 0.05.
class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.d = mlp(64, 96, 16), mlp(8, 96, 64)

    def forward(self, x):
        mu, lv = self.e(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (lv / 2).exp() if self.training else mu
        return self.d(z), mu, lv


def vae_rate(seed, twin):
    x, _, xt, _ = digits(seed)

    def loss(m, b):
        r, mu, lv = m.net(b[0] * 16)
        return ((r - b[0] * 16) ** 2).sum(1).mean() + 0.5 * (mu**2 + lv.exp() - lv - 1).sum(1).mean()

    return Run(
        Task(Vae(), loss, lambda p: torch.optim.RMSprop(p, 1e-3 if twin else 0.05)),
        loader(x, batch=64, seed=seed),
        quiet(lambda m: r2(m.net(xt * 16)[0], xt * 16)),
        0.0,
        {"max_steps": 800},
    )


RUNS = [
    gcn_sum_adjacency,
    log_of_zero,
    charlm_nadam_rate,
    int8_without_scale,
    bandit_reward_in_cents,
    pinn_lbfgs_no_search,
    warmup_never_ends,
    scale_never_undone,
    diffusion_snr_of_zero,
    fill_value_left_in,
    half_log_eps,
    new_tokens_uninitialised,
    ratings_default_embedding,
    rnn_randn_recurrence,
    vae_rate,
]
