"""Ten sick runs: realistic mistakes; ``twin`` is the same program with the mistake corrected by hand."""

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn import datasets
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@torch.no_grad()
def out(m, x):
    m.eval()
    return m.net(x).float()


def ce(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


def zero_logs(seed, twin):
    """log() of features that hold zeros: -inf in 3 % of the rows, through BatchNorm; AdamW. Twin: log(x + 1e-3)."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    bad = (d.data <= 0).any(1)
    te = te[~bad[te]]
    with np.errstate(divide="ignore"):
        x = np.log(d.data + 1e-3) if twin else np.log(d.data)
    ok = tr[~bad[tr]]
    x = (x - x[ok].mean(0)) / x[ok].std(0)
    x, y = T(x), L(d.target)
    net = nn.Sequential(
        nn.Linear(30, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )
    m = Task(net, ce, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return Run(
        m,
        loader(x[tr], y[tr], batch=16, seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 500},
    )


def finetune_rate(seed, twin):
    """A CNN pretrained on digits 0-4 is fine-tuned on 5-9 with SGD at 1.0, the head's rate meant for a frozen trunk.
    Twin: 0.01."""
    d = datasets.load_digits()
    x, y = T(d.images / 16.0)[:, None], L(d.target)
    a, b = (y < 5).nonzero()[:, 0], (y >= 5).nonzero()[:, 0]
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
    )
    old = nn.Sequential(trunk, nn.Linear(64, 5))
    o = torch.optim.Adam(old.parameters(), lr=1e-3)
    g = G(seed)
    for _ in range(150):
        i = a[torch.randint(len(a), (32,), generator=g)]
        o.zero_grad()
        F.cross_entropy(old(x[i]), y[i]).backward()
        o.step()
    o.zero_grad()
    net = nn.Sequential(trunk, nn.Linear(64, 5))
    tr, te = split(len(b), seed)
    tr, te = b[tr], b[te]
    m = Task(net, ce, lambda p: torch.optim.SGD(p, lr=0.01 if twin else 1.0, momentum=0.9))
    return Run(
        m,
        loader(x[tr], y[tr] - 5, seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te] - 5),
        majority(y[te] - 5),
        {"max_steps": 400},
    )


class CharGRU(nn.Module):
    def __init__(self, v):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(v, 32), nn.GRU(32, 96, batch_first=True), nn.Linear(96, v)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def growing_schedule(seed, twin):
    """A character model of real text whose "decay" is 1.02 a step in place of 0.995: Adam from 4e-3 to 16. Twin:
    0.995."""
    text = "".join(
        getattr(datasets, "load_" + n)().DESCR
        for n in ("iris", "wine", "digits", "breast_cancer", "diabetes", "linnerud")
    )
    voc = sorted(set(text))
    ids = L([voc.index(c) for c in text])
    n = len(ids) // 49
    s = ids[: n * 49].view(n, 49)
    tr, te = split(n, seed)

    def loss(m, b):
        return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())

    def score(m):
        return -float(F.cross_entropy(out(m, s[te][:, :-1]).flatten(0, 1), s[te][:, 1:].flatten()))

    p = torch.bincount(s[tr].flatten(), minlength=len(voc)).float() + 1
    p = (p / p.sum()).log()
    m = Task(
        CharGRU(len(voc)),
        loss,
        lambda p: torch.optim.Adam(p, lr=4e-3),
        lambda o: LambdaLR(o, lambda k: (0.995 if twin else 1.02) ** k),
    )
    return Run(
        m, loader(s[tr], batch=24, seed=seed), score, float(p[s[te][:, 1:].flatten()].mean()), {"max_steps": 420}
    )


class GCN(nn.Module):
    def __init__(self, adj, x, d):
        super().__init__()
        self.adj, self.x = adj, x
        self.layers = nn.ModuleList(nn.Linear(d[i], d[i + 1]) for i in range(len(d) - 1))

    def forward(self, _=None):
        h = self.x
        for i, l in enumerate(self.layers):
            h = self.adj @ l(h)
            if i < len(self.layers) - 1:
                h = h.relu()
        return h


def sum_gcn(seed, twin):
    """A three-layer graph network on the neighbour graph of digits, full batch, whose adjacency was not normalised.
    Twin: D^-1/2 A D^-1/2."""
    from sklearn.neighbors import kneighbors_graph

    d = datasets.load_digits()
    k = np.random.RandomState(seed).permutation(len(d.target))[:800]
    a = kneighbors_graph(d.data[k], 12).toarray()
    a = np.maximum(a, a.T) + np.eye(len(k))
    if twin:
        r = 1 / np.sqrt(a.sum(1))
        a = a * r[:, None] * r[None]
    x, y = T(d.data[k] / 16.0), L(d.target[k])
    tr, te = L(np.arange(200)), L(np.arange(200, 800))
    m = Task(
        GCN(T(a), x, (64, 48, 48, 10)),
        lambda m, b: F.cross_entropy(m.net()[tr], y[tr]),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    )
    return Run(m, ticks(400, seed), lambda m: accuracy(out(m, None)[te], y[te]), majority(y[te]), {"max_steps": 400})


class A2C(Manual):
    """A point mass that is to be pushed to the origin; three forces; actor and critic with an optimizer each."""

    def __init__(self, scaled):
        super().__init__()
        self.scaled = scaled
        self.actor, self.critic = mlp(2, 32, 32, 3, act=nn.Tanh), mlp(2, 32, 32, 1, act=nn.Tanh)

    def configure_optimizers(self):
        return tuple(torch.optim.SGD(n.parameters(), lr=0.05, momentum=0.9) for n in (self.actor, self.critic))

    @torch.no_grad()
    def rollout(self, g, n=64, horizon=30, uniform=False):
        s = torch.rand(n, 2, generator=g) * 2 - 1
        ss, aa, rr = [], [], []
        for _ in range(horizon):
            p = torch.full((n, 3), 1 / 3) if uniform else self.actor(s).softmax(-1)
            a = torch.multinomial(p, 1, generator=g)[:, 0]
            v = 0.95 * s[:, 1] + 0.15 * (a - 1).float()
            x = s[:, 0] + 0.2 * v
            ss.append(s)
            aa.append(a)
            s = torch.stack([x, v], 1)
            rr.append(-(x**2).clamp(max=4) - 0.05 * v**2)
        return torch.stack(ss), torch.stack(aa), torch.stack(rr), s

    def training_step(self, batch, _):
        s, a, r, last = self.rollout(G(int(batch[0])))
        oa, oc = self.optimizers()
        r = r if self.scaled else 1000 * r
        with torch.no_grad():
            ret, R = torch.empty_like(r), self.critic(last)[:, 0]
            for t in reversed(range(len(r))):
                ret[t] = R = r[t] + 0.95 * R
        v = self.critic(s)[..., 0]
        adv = (ret - v).detach()
        if self.scaled:
            adv = (adv - adv.mean()) / (adv.std() + 1e-6)
        lp = self.actor(s).log_softmax(-1)
        pi = -(lp.gather(-1, a[..., None])[..., 0] * adv).mean() + 0.01 * (lp.exp() * lp).sum(-1).mean()
        self.update(oa, pi)
        self.update(oc, F.mse_loss(v, ret))
        self.log("loss", pi)


def raw_rewards(seed, twin):
    """Actor-critic (manual, two SGDs) on rewards in thousandths, advantages not normalised. Twin: both mended."""
    m = A2C(twin)
    base = float(m.rollout(G(7), n=512, uniform=True)[2].mean())

    def score(m):
        if not all(torch.isfinite(p).all() for p in m.parameters()):
            return float("nan")
        return float(m.rollout(G(7), n=512)[2].mean())

    return Run(m, ticks(2000, seed), score, base, {"max_steps": 500})


class Flow(nn.Module):
    def __init__(self, d, bound, n=6):
        super().__init__()
        self.bound, self.d = bound, d
        self.nets = nn.ModuleList(mlp(d // 2, 48, 48, d) for _ in range(n))
        if bound:
            for k in self.nets:
                nn.init.zeros_(k[-1].weight)
                nn.init.zeros_(k[-1].bias)

    def forward(self, x):
        ld = 0
        for k in self.nets:
            a, b = x.chunk(2, 1)
            s, t = k(a).chunk(2, 1)
            if self.bound:
                s = torch.tanh(s)
            x, ld = torch.cat([b * s.exp() + t, a], 1), ld + s.sum(1)
        return -0.5 * (x**2).sum(1) - 0.5 * self.d * np.log(2 * np.pi) + ld


def flow_no_tanh(seed, twin):
    """A RealNVP of digits (16 components) without tanh on the log-scale, and the data not standardised; accumulation
    of 2. Twin: both."""
    from sklearn.decomposition import PCA

    d = datasets.load_digits()
    tr, te = split(len(d.target), seed)
    x = PCA(16, random_state=0).fit(d.data[tr]).transform(d.data)
    z, mean, std = standard(x, tr)
    jac = 0.0 if twin else float(np.log(std).mean())
    x = T(z if twin else x)
    triv = float((-0.5 * T(z)[te] ** 2).mean() - 0.5 * np.log(2 * np.pi))
    m = Task(Flow(16, twin), lambda m, b: -m.net(b[0]).mean() / 16, lambda p: torch.optim.Adam(p, lr=2e-3))
    return Run(
        m,
        loader(x[tr], batch=32, seed=seed),
        lambda m: float(out(m, x[te]).mean() / 16) + jac,
        triv,
        {"max_steps": 500, "accumulate_grad_batches": 2},
    )


def pinn_rate(seed, twin):
    """A physics-informed network for u'' + 9 u' = f, u(0) = u(1) = 0, with Adam at 2e-1, a slip of the pen. Twin:
    2e-3."""
    net = mlp(1, 64, 64, 64, 1, act=nn.Tanh)
    w = 2 * np.pi

    def loss(m, b):
        x = torch.rand(64, 1, generator=G(int(b[0])), requires_grad=True)
        u = m.net(x)
        du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        ddu = torch.autograd.grad(du.sum(), x, create_graph=True)[0]
        f = -w * w * torch.sin(w * x) + 9 * w * torch.cos(w * x)
        return ((ddu + 9 * du - f) ** 2).mean() + 500 * (m.net(torch.tensor([[0.0], [1.0]])) ** 2).mean()

    x = torch.linspace(0, 1, 200)[:, None]
    m = Task(net, loss, lambda p: torch.optim.Adam(p, lr=2e-3 if twin else 2e-1))
    return Run(m, ticks(1000, seed), lambda m: r2(out(m, x), torch.sin(w * x)), 0.0, {"max_steps": 1000})


class MF(nn.Module):
    def __init__(self, u, i, k=8):
        super().__init__()
        self.u, self.i, self.bu, self.bi = (
            nn.Embedding(u, k),
            nn.Embedding(i, k),
            nn.Embedding(u, 1),
            nn.Embedding(i, 1),
        )
        self.b = nn.Parameter(torch.zeros(1))
        for e in (self.u, self.i):
            nn.init.normal_(e.weight, std=0.3)
        for e in (self.bu, self.bi):
            nn.init.zeros_(e.weight)

    def forward(self, ui):
        a, b = ui[:, 0], ui[:, 1]
        return (self.u(a) * self.i(b)).sum(1) + self.bu(a)[:, 0] + self.bi(b)[:, 0] + self.b


def sentinel_ratings(seed, twin):
    """Matrix factorisation whose missing ratings (0.4 % of the rows) are the sentinel -9999; SGD, accumulation of 2.
    Twin: dropped."""
    r = np.random.RandomState(seed)
    U, V = r.randn(150, 4), r.randn(100, 4)
    ui = np.stack([r.randint(150, size=9000), r.randint(100, size=9000)], 1)
    y = 3 + 0.5 * (U[ui[:, 0]] * V[ui[:, 1]]).sum(1) + 0.1 * r.randn(9000)
    tr, te = split(9000, seed)
    bad = r.rand(len(tr)) < 0.004
    yt, uit = y[tr].copy(), ui[tr]
    if twin:
        yt, uit = yt[~bad], uit[~bad]
    else:
        yt[bad] = -9999
    m = Task(
        MF(150, 100),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        lambda o: LambdaLR(o, lambda k: min(1, (k + 1) / 50)),
    )
    x, yt, yte = L(ui[te]), T(yt), T(y[te])
    return Run(
        m,
        loader(L(uit), yt, batch=32, seed=seed),
        lambda m: r2(out(m, x), yte),
        0.0,
        {"max_steps": 900, "accumulate_grad_batches": 2},
    )


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def int8_head(seed, twin):
    """An LSTM forecaster resumed by hand from an int8 export; the head's scale was forgotten, so its weights are
    -127..127. Twin: scaled."""
    r = np.random.RandomState(seed)
    t = np.arange(2600)
    s = np.sin(t / 5.1) + 0.6 * np.sin(t / 13.7 + 1) + 0.3 * np.sin(t / 2.3) + 0.1 * r.randn(len(t))
    w = np.lib.stride_tricks.sliding_window_view(s, 29)
    x, y = T(w[:, :24])[..., None], T(w[:, 28:])
    tr, te = np.arange(2000), np.arange(2060, len(x))
    net = Forecast()
    o = torch.optim.Adam(net.parameters(), lr=1e-2)
    g = G(seed)
    for _ in range(300):
        i = torch.randint(2000, (32,), generator=g)
        o.zero_grad()
        F.mse_loss(net(x[i]), y[i]).backward()
        o.step()
    o.zero_grad()
    with torch.no_grad():
        q = net.out.weight.abs().max() / 127
        net.out.weight.div_(q).round_()
        if twin:
            net.out.weight.mul_(q)
    m = Task(net, lambda m, b: F.mse_loss(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(m, loader(x[tr], y[tr], seed=seed), lambda m: r2(out(m, x[te]), y[te]), 0.0, {"max_steps": 300})


class Tiny(Manual):
    """A small pre-norm transformer over the eight rows of a digit, with the loss scaled by hand."""

    def __init__(self, twin):
        super().__init__()
        self.twin = twin
        self.inp, self.pos = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.1)
        self.enc = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )
        self.out = nn.Linear(32, 10)

    def net(self, x):
        return self.out(self.enc(self.inp(x) + self.pos).mean(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def training_step(self, b, _):
        opt = self.optimizers()
        loss = F.cross_entropy(self.net(b[0]).float(), b[1])
        opt.zero_grad()
        self.manual_backward(loss * 1024)
        if self.twin:
            for p in self.parameters():
                p.grad /= 1024
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()
        self.log("loss", loss)


def never_unscaled(seed, twin):
    """A transformer with a hand-written loss scale of 1024 whose unscaling was forgotten; SGD, manual, bf16. Twin:
    unscaled."""
    d = datasets.load_digits()
    x, y = T(d.images / 16.0), L(d.target)
    tr, te = split(len(y), seed)
    return Run(
        Tiny(twin),
        loader(x[tr], y[tr], seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 500, "precision": "bf16-mixed"},
    )


RUNS = [
    zero_logs,
    finetune_rate,
    growing_schedule,
    sum_gcn,
    raw_rewards,
    flow_no_tanh,
    pinn_rate,
    sentinel_ratings,
    int8_head,
    never_unscaled,
]
