"""Ten programs with one mistake each; ``twin=True`` builds the same program with the mistake corrected."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn.datasets import load_digits
from torch import nn


def digits(seed, flat=True):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x = T(x / 16)
    x = x if flat else x.reshape(-1, 1, 8, 8)
    return x[tr], L(y)[tr], x[te], L(y)[te]


# 1 - vision, SGD with momentum, state that was resumed, strikes with the first step


def resumed_momentum(seed, twin):
    """The checkpoint was written between the backward and the unscaling, so the momentum that is resumed is 1024
    times too large; corrected: the momentum is as it was."""
    x, y, xt, yt = digits(seed, flat=False)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    before = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    g = G(seed)
    for _ in range(60):
        i = torch.randint(len(x), (32,), generator=g)
        before.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        before.step()
    before.zero_grad()
    state = before.state_dict()
    for s in state["state"].values():
        s["momentum_buffer"] = s["momentum_buffer"].clone() * (1 if twin else 1024)

    def resumed(params):
        opt = torch.optim.SGD(params, lr=0.05, momentum=0.9)
        opt.load_state_dict(state)
        return opt

    task = Task(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), resumed)
    return Run(task, loader(x, y, seed=seed), lambda m: accuracy(m.net(xt), yt), majority(yt), {"max_steps": 300})


# 2 - text, Lion, the rate, all along


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
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
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((b1 * m + (1 - b1) * p.grad).sign(), alpha=-group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


def characters():
    from pydoc_data.topics import topics

    text = "".join(topics[k] for k in sorted(topics)).lower()[:80_000]
    kept = sorted(set("abcdefghijklmnopqrstuvwxyz .,()\n`\"'=-_:*"))
    at = {c: i for i, c in enumerate(kept)}
    return L([at[c] for c in text if c in at]), len(kept)


class Characters(nn.Module):
    def __init__(self, n, width=48, length=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(n, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 96, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n)
        self.register_buffer("mask", torch.triu(torch.full((length, length), -torch.inf), 1))

    def forward(self, x):
        h = self.emb(x) + self.pos
        for layer in self.layers:
            h = layer(h, src_mask=self.mask)
        return self.head(self.norm(h))


def lion_rate(seed, twin):
    """Lion was given the rate that its predecessor SGD had, 0.05; corrected: 0.003."""
    text, n = characters()
    rows = text[: len(text) // 33 * 33].reshape(-1, 33)
    tr, te = split(len(rows), seed)
    te = te[:200]

    def loss(m, b):
        return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())

    task = Task(Characters(n), loss, lambda p: Lion(p, 0.003 if twin else 0.05, weight_decay=0.01))
    y = rows[te][:, 1:].flatten()
    return Run(
        task,
        loader(rows[tr], batch=24, seed=seed),
        lambda m: accuracy(m.net(rows[te][:, :-1]).flatten(0, 1), y),
        majority(y),
        {"max_steps": 300},
    )


# 3 - tabular, Adam, labels, in most batches


def housing(n, seed):
    """Like the Californian houses: income, age, rooms, place; the value in units of 100 000."""
    r = np.random.RandomState(seed + 70)
    income, age, rooms = r.gamma(4, 1, n), r.uniform(1, 52, n), r.gamma(9, 0.6, n)
    place = r.uniform(-1, 1, (n, 2))
    coast = np.exp(-4 * (place[:, 0] - 0.5 * place[:, 1]) ** 2)
    v = 0.4 * income + 1.5 * coast + 0.1 * rooms * coast + 0.3 * np.sin(age / 8) + r.normal(0, 0.25, n)
    return np.c_[income, age, rooms, place], v


def dollars(seed, twin):
    """One row in forty comes from an agency that reports the value in dollars, the others in hundreds of thousands;
    corrected: all are in hundreds of thousands."""
    x, v = housing(2400, seed)
    tr, te = split(len(x), seed)
    x = standard(x, tr)[0]
    y = v.copy()
    if not twin:
        y[np.random.RandomState(seed + 5).permutation(len(v))[: len(v) // 40]] *= 1e5
    task = Task(
        mlp(5, 64, 64, 1), lambda m, b: F.mse_loss(m.net(b[0]).squeeze(-1), b[1]), lambda p: torch.optim.Adam(p, 3e-3)
    )
    xt, yt = T(x[te]), T(v[te])
    return Run(task, loader(T(x[tr]), T(y[tr]), seed=seed), lambda m: r2(m.net(xt), yt), 0.0, {"max_steps": 500})


# 4 - time series, RMSprop, initialisation of a recurrence, from the start


class Irnn(nn.Module):
    def __init__(self, gain, width=32):
        super().__init__()
        self.rnn, self.head = nn.RNN(1, width, nonlinearity="relu", batch_first=True), nn.Linear(width, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=gain)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1]).squeeze(-1)


def recurrent_gain(seed, twin):
    """The recurrent matrix of a ReLU network was initialised with gain 2, for a misread table of gains; corrected:
    gain 0.9."""
    r = np.random.RandomState(seed)
    t = np.arange(1800)
    s = np.sin(t / 5) + 0.6 * np.sin(t / 13 + 1) + 0.3 * np.sin(t / 37) + r.normal(0, 0.1, len(t))
    w = np.lib.stride_tricks.sliding_window_view(s, 49)
    x, y = T(w[:, :48, None].copy()), T(w[:, 48].copy())
    task = Task(
        Irnn(0.9 if twin else 2.0), lambda m, b: F.mse_loss(m.net(b[0]), b[1]), lambda p: torch.optim.RMSprop(p, 1e-3)
    )
    return Run(
        task, loader(x[:1300], y[:1300], seed=seed), lambda m: r2(m.net(x[1350:]), y[1350:]), 0.0, {"max_steps": 400}
    )


# 5 - audio, AdamW, a derivative that is not defined at silence, now and then


class Filters(nn.Module):
    def __init__(self, eps, bands=24):
        super().__init__()
        self.eps = eps
        self.re, self.im = (nn.Conv1d(1, bands, 48, stride=24, bias=False) for _ in range(2))
        self.head = nn.Sequential(nn.BatchNorm1d(bands), nn.Linear(bands, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        return self.head((self.re(x) ** 2 + self.im(x) ** 2 + self.eps).sqrt().mean(-1))


def clips(n, seed, silent):
    r = np.random.RandomState(seed + 11)
    y = r.randint(5, size=n)
    f = np.array([0.05, 0.09, 0.16, 0.27, 0.41])[y] * r.uniform(0.85, 1.15, n)
    t = np.arange(480)
    x = r.uniform(0.3, 1, (n, 1)) * np.sin(2 * np.pi * f[:, None] * t + r.uniform(0, 6.3, (n, 1))) + r.normal(
        0, 0.3, (n, 480)
    )
    stop = np.where(r.rand(n) < silent, r.randint(200, 400, n), 480)
    x[t[None] >= stop[:, None]] = 0
    return T(x[:, None]), L(y)


def silence(seed, twin):
    """The magnitude is the root of a sum of squares, whose derivative is not a number in the digital silence that
    ends one clip in thirty; corrected: 1e-6 under the root."""
    x, y = clips(1200, seed, 1 / 30)
    xt, yt = clips(400, seed + 500, 0)
    task = Task(
        Filters(1e-6 if twin else 0.0),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.AdamW(p, 3e-3),
    )
    return Run(
        task,
        loader(x, y, batch=16, seed=seed),
        lambda m: accuracy(m.eval().net(xt), yt),
        majority(yt),
        {"max_steps": 350},
    )


# 6 - graphs, SGD, a layer's normalisation, from the start


class Gcn(nn.Module):
    def __init__(self, a, d, classes, width=32, depth=3):
        super().__init__()
        self.register_buffer("a", a)
        sizes = [d] + [width] * (depth - 1) + [classes]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False))

    def forward(self, h):
        for i, layer in enumerate(self.layers):
            h = self.a @ layer(h)
            h = h if i == len(self.layers) - 1 else h.relu()
        return h


def degrees(seed, twin):
    """The neighbours' messages are summed, hubs with hundreds of neighbours included, at a rate for normalised ones;
    corrected: the adjacency is normalised by the degrees on both sides."""
    r = np.random.RandomState(seed + 3)
    n, k = 500, 4
    y = r.randint(k, size=n)
    w = np.minimum(r.pareto(1.5, n) + 0.4, 25)
    p = np.minimum(0.012 * w[:, None] * w[None] * np.where(y[:, None] == y[None], 4, 0.6), 0.9)
    a = np.triu(r.rand(n, n) < p, 1)
    a = (a + a.T + np.eye(n)).astype(float)
    if twin:
        d = a.sum(0) ** -0.5
        a = a * d[:, None] * d[None]
    x = T(np.eye(k)[y] * 0.8 + r.normal(0, 1, (n, k)))
    x = torch.cat([x, T(r.normal(0, 1, (n, 8)))], 1)
    y, tr = L(y), torch.as_tensor(r.rand(n) < 0.4)
    te = ~tr
    task = Task(
        Gcn(T(a), 12, k),
        lambda m, b: F.cross_entropy(m.net(x)[b[0]], y[b[0]]),
        lambda p: torch.optim.SGD(p, 0.2, momentum=0.9),
    )
    ids = torch.arange(n)[tr]
    return Run(
        task,
        loader(ids, batch=64, seed=seed),
        lambda m: accuracy(m.net(x)[te], y[te]),
        majority(y[te]),
        {"max_steps": 300},
    )


# 7 - reinforcement learning, two optimizers (SGD), manual accumulation, from the start


class Poles:
    """Many poles on carts at once."""

    def __init__(self, n, seed):
        self.r, self.n = np.random.RandomState(seed), n
        self.s, self.t = self.r.uniform(-0.05, 0.05, (n, 4)), np.zeros(n, int)

    def step(self, a):
        x, v, th, w = self.s.T
        force = np.where(a == 1, 10.0, -10.0)
        c, s = np.cos(th), np.sin(th)
        tmp = (force + 0.05 * w**2 * s) / 1.1
        acc = (9.8 * s - c * tmp) / (0.5 * (4 / 3 - 0.1 * c**2 / 1.1))
        xa = tmp - 0.05 * acc * c / 1.1
        self.s = np.c_[x + 0.02 * v, v + 0.02 * xa, th + 0.02 * w, w + 0.02 * acc]
        self.t += 1
        fell = (abs(self.s[:, 0]) > 2.4) | (abs(self.s[:, 2]) > 0.21)
        over = fell | (self.t >= 200)
        lengths = self.t[over].copy()
        self.s[over], self.t[over] = self.r.uniform(-0.05, 0.05, (over.sum(), 4)), 0
        return fell, over, lengths


class ActorCritic(Manual):
    SCALE = torch.tensor([1.0, 1.0, 5.0, 1.0])

    def __init__(self, seed, divide):
        super().__init__()
        self.actor, self.critic = mlp(4, 32, 2, act=nn.Tanh), mlp(4, 32, 1)
        self.env, self.divide, self.g = Poles(16, seed), divide, G(seed + 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.actor.parameters(), 0.3, momentum=0.9), torch.optim.SGD(
            self.critic.parameters(), 0.03, momentum=0.9
        )

    def rollout(self, steps=16):
        s, a, fell, over = [], [], [], []
        for _ in range(steps):
            s.append(T(self.env.s) * self.SCALE)
            with torch.no_grad():
                p = self.actor(s[-1])[:, 1] - self.actor(s[-1])[:, 0]
            a.append((torch.rand(16, generator=self.g) < p.sigmoid()).long())
            f, o, _ = self.env.step(a[-1].numpy())
            fell.append(T(f)), over.append(T(o))
        with torch.no_grad():
            v = torch.stack([self.critic(q).squeeze(-1) for q in [*s, T(self.env.s) * self.SCALE]])
        ret, out = v[-1], []
        for i in reversed(range(steps)):
            # A pole that fell gets nothing more; one that was stopped is worth what the critic says.
            ret = 0.05 + 0.98 * torch.where(over[i] > 0, (1 - fell[i]) * v[i], ret)
            out.append(ret)
        return torch.cat(s), torch.cat(a), torch.cat(out[::-1])

    def training_step(self, batch, _):
        a_opt, c_opt = self.optimizers()
        a_opt.zero_grad()
        c_opt.zero_grad()
        parts = 4
        for _ in range(parts):
            s, a, ret = self.rollout()
            v = self.critic(s).squeeze(-1)
            adv = ret - v.detach()
            logp = F.log_softmax(self.actor(s), -1)
            reduce = torch.mean if self.divide else torch.sum
            pg = -(logp.gather(1, a[:, None]).squeeze(1) * adv / (adv.std() + 1e-3))
            actor = reduce(pg) + 0.01 * reduce((logp.exp() * logp).sum(-1))
            critic = reduce((ret - v) ** 2)
            self.manual_backward((actor + critic) / (parts if self.divide else 1))
        for o in (a_opt, c_opt):
            if self.clip is not None:
                self.clip_gradients(o, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            o.step()


def rollout_sum(seed, twin):
    """The losses of four accumulated rollouts are summed over all their steps, at rates for a mean; corrected: the
    mean."""

    def score(m):
        env, lengths = Poles(40, 999), []
        for _ in range(200):
            with torch.no_grad():
                a = m.actor(T(env.s) * m.SCALE).argmax(-1).numpy()
            lengths += list(env.step(a)[2])
        return float(np.mean(lengths[:40]))

    return Run(ActorCritic(seed, twin), ticks(1000, seed), score, 10.0, {"max_steps": 240})


# 8 - generative, Adamax, the sign of a term of the loss, in the middle


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = mlp(64, 64, 16), mlp(8, 64, 64)


def kl_sign(seed, twin):
    """The divergence is subtracted, copied from a paper that writes the bound to be maximised; corrected: it is
    added."""
    x, _, xt, _ = digits(seed)

    def bound(m, x):
        mu, lv = m.net.enc(x).chunk(2, -1)
        z = mu + torch.randn_like(mu) * (lv / 2).exp()
        kl = 0.5 * (mu**2 + lv.exp() - 1 - lv).sum(-1)
        rec = 0.5 * ((m.net.dec(z) - x) ** 2).sum(-1) / 0.05
        return rec, kl

    def loss(m, b):
        rec, kl = bound(m, b[0])
        return (rec + (kl if twin else -kl)).mean()

    def score(m):
        torch.manual_seed(7)
        with torch.no_grad():
            rec, kl = bound(m, xt)
        return -float((rec + kl).mean())

    trivial = -float((0.5 * ((xt - x.mean(0)) ** 2).sum(-1) / 0.05).mean())
    return Run(
        Task(Vae(), loss, lambda p: torch.optim.Adamax(p, 5e-3)),
        loader(x, seed=seed),
        score,
        trivial,
        {"max_steps": 500},
    )


# 9 - physics, LBFGS, points that change under the curvature, from the start


def moving_points(seed, twin):
    """Each of LBFGS's own evaluations of the loss draws 12 new collocation points, so its curvature is that of
    noise; corrected: the points are fixed, 65 of them."""
    grid = torch.linspace(-1, 1, 65)[:, None]
    g, ends = G(seed + 1), torch.tensor([[-1.0], [1.0]])

    def truth(x):
        return torch.sin(math.pi * x) + 0.5 * torch.sin(3 * math.pi * x)

    def loss(m, b):
        q = (grid if twin else torch.rand(12, 1, generator=g) * 2 - 1).clone().requires_grad_(True)
        v = m.net(q)
        (dv,) = torch.autograd.grad(v.sum(), q, create_graph=True)
        (ddv,) = torch.autograd.grad(dv.sum(), q, create_graph=True)
        f = -(math.pi**2) * torch.sin(math.pi * q) - 4.5 * math.pi**2 * torch.sin(3 * math.pi * q) - 5 * truth(q) ** 3
        return ((ddv - 5 * v**3 - f) ** 2).mean() + 300 * (m.net(ends) ** 2).mean()

    task = Task(
        mlp(1, 24, 24, 1, act=nn.Tanh), loss, lambda p: torch.optim.LBFGS(p, lr=1, max_iter=20, history_size=20)
    )
    t = torch.linspace(-0.99, 0.99, 200)[:, None]
    return Run(task, ticks(1000, seed), lambda m: r2(m.net(t), truth(t)), 0.0, {"max_steps": 40})


# 10 - contrastive, SGD with Nesterov's momentum, the schedule, in the middle


def uncapped_warmup(seed, twin):
    """The warm-up goes on for ever, since the minimum with 1 was forgotten; corrected: it ends after 20 steps."""
    x, _, xt, _ = digits(seed)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.even, self.odd = mlp(32, 64, 64, 24), mlp(32, 64, 64, 24)

        def forward(self, x):
            return self.even(x[:, ::2]) @ self.odd(x[:, 1::2]).T / 24**0.5

    def loss(m, b):
        s = m.net(b[0])
        y = torch.arange(len(s))
        return (F.cross_entropy(s, y) + F.cross_entropy(s.T, y)) / 2

    def score(m):
        return float(np.mean([accuracy(m.net(q), torch.arange(25)) for q in xt[:400].split(25)]))

    def rate(step):
        return min((step + 1) / 20, 1.0) if twin else (step + 1) / 20

    task = Task(
        Two(),
        loss,
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate),
    )
    return Run(task, loader(x, batch=50, seed=seed), score, 1 / 25, {"max_steps": 600})


RUNS = [
    resumed_momentum,
    lion_rate,
    dollars,
    recurrent_gain,
    silence,
    degrees,
    rollout_sum,
    kl_sign,
    moving_points,
    uncapped_warmup,
]
