"""Ten programs with one mistake each; ``twin=True`` is the same program without it."""

import math

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn.datasets import load_breast_cancer, load_digits, make_moons
from torch import nn
from torch.nn import functional as F


def _digits(seed):
    d = load_digits()
    tr, te = split(len(d.target), seed)
    return T(d.data) / 16, L(d.target), tr, te


class CharRNN(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(vocab, 32), nn.RNN(32, hidden, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(hidden, vocab)
        nn.init.eye_(self.rnn.weight_hh_l0)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def char_rnn_no_clipping(seed, twin=False):
    """A ReLU RNN (identity start) as a character model, plain SGD at rate 0.3; gradient clipping was forgotten."""
    rs = np.random.RandomState(seed + 11)
    table = rs.dirichlet(np.full(14, 0.12), size=(14, 14)).cumsum(-1)
    text = [0, 1]
    for u in rs.rand(24_000):
        text.append(min(int(np.searchsorted(table[text[-2], text[-1]], u)), 13))
    windows = L(text[: 24_000 // 41 * 41]).reshape(-1, 41)
    tr, te = windows[:450], windows[450:]

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(te[:, :-1]), te[:, 1:])

    def loss(m, b):
        return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())

    task = Task(CharRNN(14, 96), loss, lambda p: torch.optim.SGD(p, 0.3))
    kwargs = {"max_steps": 600, **({"gradient_clip_val": 0.5} if twin else {})}
    return Run(task, loader(tr, batch=16, seed=seed), score, majority(te[:, 1:].flatten()), kwargs)


def sensor_sentinel(seed, twin=False):
    """Forecast of a sensor from its last 24 readings; two records hold the logger's -9999 for "no reading"."""
    rs = np.random.RandomState(seed + 21)
    t = np.arange(2600)
    y = np.sin(t / 5) + 0.6 * np.sin(t / 17 + 1) + 0.4 * np.sin(t * t / 9e4) + 0.1 * rs.randn(len(t))
    w = np.lib.stride_tricks.sliding_window_view(y, 27)
    tr, te = w[:1900].copy(), T(w[1950:])
    bad = rs.choice(1900, 2, replace=False)
    if twin:
        tr = np.delete(tr, bad, 0)
    else:
        tr[bad, 5:9] = -9999.0
    tr = T(tr)

    def score(m):
        with torch.no_grad():
            return r2(m.net(te[:, :24]), te[:, 26])

    def loss(m, b):
        return F.mse_loss(m.net(b[0][:, :24]).squeeze(-1), b[0][:, 26])

    task = Task(mlp(24, 64, 64, 1), loss, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9))
    return Run(task, loader(tr, batch=32, seed=seed), score, 0.0, {"max_steps": 700})


def siamese_sqrt(seed, twin=False):
    """Contrastive learning on digits with a Euclidean distance: no gradient at 0, where a pair is one image twice."""
    x, y, tr, te = _digits(seed)
    g = G(seed + 31)
    i = torch.randint(len(tr), (6000,), generator=g)
    j = torch.randint(len(tr), (6000,), generator=g)
    near = torch.rand(6000, generator=g) < 0.4
    xt, yt = x[tr], y[tr]
    same = [(yt == c).nonzero().flatten() for c in range(10)]
    for k in near.nonzero().flatten().tolist():
        s = same[int(yt[i[k]])]
        j[k] = s[torch.randint(len(s), (1,), generator=g)]

    def score(m):
        with torch.no_grad():
            a, b = m.net(x[te]), m.net(xt)
            if not torch.isfinite(a).all():
                return math.nan
            votes = yt[torch.cdist(a, b).topk(5, largest=False).indices]
            return float((votes.mode(-1).values == y[te]).double().mean())

    def loss(m, b):
        d2 = (m.net(b[0]) - m.net(b[1])).pow(2).sum(-1)
        d = (d2 + 1e-8).sqrt() if twin else d2.sqrt()
        return torch.where(b[2] > 0, d**2, F.relu(1 - d) ** 2).mean()

    task = Task(mlp(64, 64, 8), loss, lambda p: torch.optim.AdamW(p, 2e-3))
    data = loader(xt[i], xt[j], (yt[i] == yt[j]).float(), batch=32, seed=seed)
    return Run(task, data, score, majority(y[te]), {"max_steps": 500})


class Tagger(nn.Module):
    def __init__(self, vocab, dim, layers, length):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, dim), nn.Parameter(torch.randn(length, dim) * 0.1)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=False)
        self.enc = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(dim, vocab)

    def forward(self, x):
        return self.out(self.enc(self.emb(x) + self.pos))


def post_norm_no_warmup(seed, twin=False):
    """A post-norm transformer that learns to sort sequences with Adam; the usual warm-up of the rate is missing."""
    g = G(seed + 41)
    x = torch.randint(12, (4000, 10), generator=g)
    y = x.sort(1).values
    tr, te = slice(0, 3500), slice(3500, None)

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x[te]), y[te])

    def loss(m, b):
        return F.cross_entropy(m.net(b[0]).flatten(0, 1), b[1].flatten())

    def rate(step):
        return (min(1.0, (step + 1) / 150) if twin else 1.0) * max(0.02, 1 - step / 450)

    task = Task(
        Tagger(12, 32, 6, 10),
        loss,
        lambda p: torch.optim.Adam(p, 2e-2),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate),
    )
    return Run(task, loader(x[tr], y[tr], batch=32, seed=seed), score, majority(y[te].flatten()), {"max_steps": 450})


class Hover(Manual):
    """REINFORCE on an unstable linear plant with a Gaussian policy; an update is 32 episodes of 12 steps."""

    def __init__(self, normalise):
        super().__init__()
        self.mean, self.log_std, self.normalise = mlp(2, 32, 1, act=nn.Tanh), nn.Parameter(torch.zeros(1)), normalise

    def episodes(self, n, g, act):
        s, logp, rewards = torch.randn(n, 2, generator=g), [], []
        for _ in range(12):
            u, lp = act(s, g)
            s = torch.stack([s[:, 0] + 0.3 * s[:, 1], 1.15 * s[:, 1] + 0.3 * s[:, 0] + 0.5 * u], 1).detach()
            rewards.append(-(s**2).sum(1) - 0.05 * u**2)
            logp.append(lp)
        return torch.stack(logp), torch.stack(rewards)

    def policy(self, s, g):
        mu, std = self.mean(s).squeeze(-1), self.log_std.exp()
        u = (mu + std * torch.randn(len(s), generator=g)).detach()
        return u, -0.5 * ((u - mu) / std) ** 2 - self.log_std

    def training_step(self, batch, _):
        logp, rewards = self.episodes(32, G(int(batch[0])), self.policy)
        togo = rewards.flip(0).cumsum(0).flip(0).detach()
        adv = togo - togo.mean(1, keepdim=True)
        if self.normalise:
            adv = adv / (togo.std(1, keepdim=True) + 1e-6)
        loss = -(logp * adv).mean()
        self.log("loss", loss)
        self.update(self.optimizers(), loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.015)


def hover_raw_returns(seed, twin=False):
    """A policy gradient for an unstable plant, SGD; the returns (down to minus thousands) are not normalised."""
    module = Hover(normalise=twin)

    def value(act):
        with torch.no_grad():
            total = module.episodes(200, G(seed + 51), act)[1].sum(0).mean()
            return -math.log10(1 - float(total)) if math.isfinite(total) else math.nan

    def score(m):
        return value(lambda s, g: (m.mean(s).squeeze(-1), s[:, 0]))

    trivial = value(lambda s, g: (torch.randn(len(s), generator=g), s[:, 0]))
    return Run(module, ticks(500, seed), score, trivial, {"max_steps": 500})


class Coupling(nn.Module):
    """A stack of affine coupling layers for points of the plane."""

    def __init__(self, layers):
        super().__init__()
        self.nets = nn.ModuleList(mlp(1, 32, 32, 2) for _ in range(layers))

    def forward(self, x):
        total = 0.0
        for k, net in enumerate(self.nets):
            a, b = x[:, k % 2 : k % 2 + 1], x[:, 1 - k % 2 : 2 - k % 2]
            s, t = net(a).chunk(2, 1)
            b = b * s.exp() + t
            total = total + s.sum(1)
            x = torch.cat([a, b] if k % 2 == 0 else [b, a], 1)
        return total - 0.5 * (x**2).sum(1) - math.log(2 * math.pi)


def flow_rate_too_large(seed, twin=False):
    """A normalising flow with free exponential scales on the two moons, NAdam; the rate is 20 times too large."""
    x = T(make_moons(3000, noise=0.07, random_state=seed + 61)[0])
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)

    def score(m):
        with torch.no_grad():
            return float(m.net(x[te]).double().mean())

    gauss = torch.distributions.MultivariateNormal(x[tr].mean(0), torch.cov(x[tr].T))
    rate = 2e-3 if twin else 4e-2
    task = Task(Coupling(6), lambda m, b: -m.net(b[0]).mean(), lambda p: torch.optim.NAdam(p, rate))
    data = loader(x[tr], batch=64, seed=seed)
    return Run(task, data, score, float(gauss.log_prob(x[te]).mean()), {"max_steps": 600})


class HalfScaled(Manual):
    """Forward and backward in float16 with a static loss scale."""

    def __init__(self, check):
        super().__init__()
        self.net, self.check = mlp(64, 128, 128, 10), check

    def training_step(self, batch, _):
        opt, scale = self.optimizers(), 2.0**16
        with torch.autocast("cpu", dtype=torch.float16):
            out = self.net(batch[0])
        loss = F.cross_entropy(out.float(), batch[1])
        self.log("loss", loss)
        opt.zero_grad()
        self.manual_backward(loss * scale)
        for p in self.parameters():
            p.grad /= scale
        if self.check and not all(torch.isfinite(p.grad).all() for p in self.parameters()):
            return
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def half_static_scale(seed, twin=False):
    """Half precision with a static loss scale on digits, two of them stored as 0..255; overflows are not skipped."""
    x, y, tr, te = _digits(seed)
    xt = x[tr]
    stray = torch.randint(len(tr), (2,), generator=G(seed + 91))
    xt[stray] = xt[stray] * 255

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x[te]), y[te])

    return Run(HalfScaled(twin), loader(xt, y[tr], batch=32, seed=seed), score, majority(y[te]), {"max_steps": 500})


def pinn_lbfgs_no_line_search(seed, twin=False):
    """A physics-informed network for u'' = f with LBFGS on fresh points; the line search was left out."""
    k = 3 * math.pi

    def residual(net, t):
        t = t.clone().requires_grad_()
        u = net(t)
        (d,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (dd,) = torch.autograd.grad(d.sum(), t, create_graph=True)
        return dd + k * k * torch.sin(k * t) / 9

    ends = torch.tensor([[0.0], [1.0]])

    def loss(m, b):
        return residual(m.net, b[0]).pow(2).mean() + 20 * m.net(ends).pow(2).mean()

    t = torch.linspace(0, 1, 201)[:, None]

    def score(m):
        with torch.no_grad():
            return r2(m.net(t), torch.sin(k * t) / 9)

    search = "strong_wolfe" if twin else None
    task = Task(
        mlp(1, 24, 24, 1, act=nn.Tanh),
        loss,
        lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=5, history_size=10, line_search_fn=search),
    )
    points = torch.rand(32 * 300, 1, generator=G(seed + 81))
    return Run(task, loader(points, batch=64, seed=seed), score, 0.0, {"max_steps": 300})


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(mlp(64, 96, 64), nn.ReLU())
        self.cls, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x):
        h = self.body(x)
        return self.cls(h), self.ink(h).squeeze(-1)


def growing_rate_two_heads(seed, twin=False):
    """A digit and its share of ink from one body, RMSprop; the decay of the rate is typed as 1.01, not 0.99."""
    x, y, tr, te = _digits(seed)
    ink = x.mean(1)
    ink = (ink - ink[tr].mean()) / ink[tr].std()

    def score(m):
        with torch.no_grad():
            a, b = m.net(x[te])
            return (accuracy(a, y[te]) + r2(b, ink[te])) / 2

    def loss(m, b):
        a, i = m.net(b[0])
        return F.cross_entropy(a, b[1]) + 0.5 * F.mse_loss(i, b[2])

    gamma = 0.99 if twin else 1.01
    task = Task(
        Heads(),
        loss,
        lambda p: torch.optim.RMSprop(p, 2e-3),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma),
    )
    data = loader(x[tr], y[tr], ink[tr], batch=32, seed=seed)
    return Run(task, data, score, majority(y[te]) / 2, {"max_steps": 600})


def deep_unit_normal_init(seed, twin=False):
    """A deep ReLU network for tumours, momentum SGD; its weights are drawn from N(0, 1) instead of by He's rule."""
    d = load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    net = mlp(30, *[64] * 7, 2)
    torch.manual_seed(seed + 111)
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.zeros_(m.bias)
            if twin:
                nn.init.kaiming_normal_(m.weight)
            else:
                nn.init.normal_(m.weight)

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x[te]), y[te])

    task = Task(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9))
    return Run(task, loader(x[tr], y[tr], batch=32, seed=seed), score, majority(y[te]), {"max_steps": 400})


RUNS = [
    char_rnn_no_clipping,
    sensor_sentinel,
    siamese_sqrt,
    post_norm_no_warmup,
    hover_raw_returns,
    flow_rate_too_large,
    half_static_scale,
    pinn_lbfgs_no_line_search,
    growing_rate_two_heads,
    deep_unit_normal_init,
]
