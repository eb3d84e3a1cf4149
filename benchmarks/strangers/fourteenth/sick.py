"""Eight programs with one mistake each; the twin is the program without it."""

import numpy as np
import torch
from common import G, L, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine, make_friedman1
from torch import nn
from torch.nn import functional as F


def evaluated(f):
    def score(module):
        module.eval()
        with torch.no_grad():
            return f(module)

    return score


def classes(x, y):
    return evaluated(lambda m: accuracy(m.net(x), y))


def crossed(m, batch):
    return F.cross_entropy(m.net(batch[0]), batch[1])


def digits(seed):
    d = load_digits()
    tr, te = split(len(d.target), seed)
    x, y = T(d.data) / 16, L(d.target)
    return x[tr], y[tr], x[te], y[te]


class CharRNN(nn.Module):
    def __init__(self, n, d=96):
        super().__init__()
        self.emb, self.out = nn.Embedding(n, 32), nn.Linear(d, n)
        self.rnn = nn.RNN(32, d, nonlinearity="relu", batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def char_irnn_unclipped(seed, twin=False):
    """A character RNN with ReLU and identity start on the data sets' descriptions, SGD with momentum.

    The mistake: the recipe's rate was copied, its clipping of the gradient's norm at 1 was not.
    """
    loads = (load_iris, load_wine, load_digits, load_diabetes, load_breast_cancer)
    texts = [f().DESCR.lower() for f in loads]
    chars = sorted(set("".join(texts)))
    parts = L([chars.index(c) for c in "".join(texts)]).split(200)
    train = torch.cat([p for k, p in enumerate(parts) if k % 7])
    w, v = train.unfold(0, 25, 3), torch.cat([p.unfold(0, 25, 12) for p in parts[::7]])
    freq = (torch.bincount(train, minlength=len(chars)) + 1.0) / (len(train) + len(chars))

    def loss(m, x):
        return F.cross_entropy(m.net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    module = Task(CharRNN(len(chars)), lambda m, b: loss(m, b[0]), lambda p: torch.optim.SGD(p, lr=0.4, momentum=0.9))
    trivial = float(freq[v[:, 1:].flatten()].log().mean())
    kwargs = {"max_steps": 600, **({"gradient_clip_val": 1.0} if twin else {})}
    return Run(module, loader(w, seed=seed), evaluated(lambda m: -loss(m, v)), trivial, kwargs)


class Patches(nn.Module):
    def __init__(self, d=48):
        super().__init__()
        self.inp, self.pos = nn.Linear(4, d), nn.Parameter(torch.randn(16, d) * 0.1)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 4, 96, 0.0, batch_first=True), 4)
        self.out = nn.Linear(d, 10)

    def forward(self, x):
        x = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.out(self.body(self.inp(x) + self.pos).mean(1))


def postnorm_vit_rate(seed, twin=False):
    """A small post-norm vision transformer on digits with Adam and no warm-up.

    The mistake: a learning rate of 1e-2, where 1e-3 was meant.
    """
    x, y, xt, yt = digits(seed)
    lr = 1e-3 if twin else 1e-2
    module = Task(Patches(), crossed, lambda p: torch.optim.Adam(p, lr=lr))
    return Run(module, loader(x, y, seed=seed), classes(xt, yt), majority(yt), {"max_steps": 320})


def sentinel_rows(seed, twin=False):
    """A table of sensors (Friedman's function) regressed by an MLP with SGD and momentum.

    The mistake: four rows carry the sentinel -9999 for a missing reading, and nobody has dropped them.
    """
    a, b = make_friedman1(2000, noise=0.5, random_state=seed)
    tr, te = split(len(a), seed)
    x, y = T(standard(a, tr)[0]), T(standard(b, tr)[0])
    xr, yr = x[tr].clone(), y[tr]
    bad = torch.arange(0, 1200, 300)
    xr[bad, torch.arange(4)] = -9999.0
    if twin:
        keep = torch.ones(len(xr), dtype=torch.bool)
        keep[bad] = False
        xr, yr = xr[keep], yr[keep]
    module = Task(
        mlp(10, 64, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    )
    score = evaluated(lambda m: r2(m.net(x[te]), y[te]))
    return Run(module, loader(xr, yr, seed=seed), score, 0.0, {"max_steps": 600})


def poisson_sum(seed, twin=False):
    """Counts regressed with the Poisson likelihood of a log-rate by SGD with momentum.

    The mistake: the loss is summed over the batch of 64, with a rate that was tuned for the mean.
    """
    g = G(seed + 50)
    x = torch.randn(2000, 6, generator=g)
    y = torch.poisson((2.0 + 0.7 * x[:, 0] + 0.5 * x[:, 1] * x[:, 2].tanh()).exp(), generator=g)
    xr, yr, xt, yt = x[:1500], y[:1500], x[1500:], y[1500:]
    loss = nn.PoissonNLLLoss(reduction="mean" if twin else "sum")
    module = Task(
        mlp(6, 64, 64, 1, act=nn.SiLU),
        lambda m, b: loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.SGD(p, lr=2e-3, momentum=0.9),
    )
    score = evaluated(lambda m: r2(m.net(xt)[:, 0], yt.log1p()))
    return Run(module, loader(xr, yr, seed=seed, batch=64), score, 0.0, {"max_steps": 800})


def siamese_root(seed, twin=False):
    """A siamese embedding of digits with the contrastive loss on 6000 pairs, scored by its nearest neighbours.

    The mistake: the distance is the bare root of a sum of squares, whose gradient is NaN for the few pairs that drew
    the same picture twice.
    """
    x, y, xt, yt = digits(seed)
    rng = np.random.RandomState(seed + 7)
    i = rng.randint(0, len(x), 6000)
    j = rng.randint(0, len(x), 6000)
    for k in range(0, 6000, 2):
        j[k] = rng.choice(np.flatnonzero((y == y[i[k]]).numpy()))
    same = (y[i] == y[j]).float()
    eps = 1e-6 if twin else 0.0

    def loss(m, b):
        d = ((m.net(b[0]) - m.net(b[1])) ** 2).sum(1).add(eps).sqrt()
        return (b[2] * d**2 + (1 - b[2]) * F.relu(1 - d) ** 2).mean()

    def score(m):
        e, et = m.net(x), m.net(xt)
        if not torch.isfinite(et).all():
            return float("nan")
        return float((y[torch.cdist(et, e).argmin(1)] == yt).double().mean())

    module = Task(mlp(64, 64, 8), loss, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    data = loader(x[i], x[j], same, seed=seed, batch=16)
    return Run(module, data, evaluated(score), majority(yt), {"max_steps": 500})


def warmup_without_end(seed, twin=False):
    """A plain convolutional network on digits, SGD with momentum and a linear warm-up over 50 steps.

    The mistake: the warm-up's factor is not capped at one and the rate grows for ever.
    """
    x, y, xt, yt = digits(seed)
    x, xt = x.view(-1, 1, 8, 8), xt.view(-1, 1, 8, 8)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )

    def factor(step):
        f = (step + 1) / 50
        return min(f, 1.0) if twin else f

    module = Task(
        net,
        crossed,
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=1e-4),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, factor),
    )
    return Run(module, loader(x, y, seed=seed), classes(xt, yt), majority(yt), {"max_steps": 800})


def normal_init(seed, twin=False):
    """A network of six hidden layers on digits with SGD.

    The mistake: every weight is drawn from a standard normal, as ``torch.randn`` gives it.
    """
    x, y, xt, yt = digits(seed)
    net = mlp(64, *[64] * 6, 10)
    init, g = nn.init.kaiming_normal_ if twin else nn.init.normal_, G(seed)
    for p in net.parameters():
        if p.dim() == 2:
            init(p, generator=g)
    module = Task(net, crossed, lambda p: torch.optim.SGD(p, lr=0.05))
    return Run(module, loader(x, y, seed=seed), classes(xt, yt), majority(yt), {"max_steps": 600})


def balance(net, s, steps):
    th, w = s.unbind(1)
    cost = 0.0
    for _ in range(steps):
        u = net(torch.stack([th, w], 1))[:, 0]
        w = w + 0.05 * (9.0 * th.sin() + u)
        th = th + 0.05 * w
        cost = cost + (th**2 + 0.1 * w**2 + 0.001 * u**2).mean()
    return cost / steps


def pendulum_through_time(seed, twin=False):
    """A controller that holds up a pendulum, trained with SGD and momentum by the gradient through the simulation.

    The mistake: the rate is 1 instead of 0.1.
    """

    def states(n, s):
        return torch.rand(n, 2, generator=G(s)) - 0.5

    lr = 0.1 if twin else 1.0
    module = Task(
        mlp(2, 32, 1, act=nn.Tanh),
        lambda m, b: balance(m.net, states(32, int(b[0])), 40),
        lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
    )
    test = states(256, 99)

    def log_cost(m):
        return -float(balance(m.net, test, 40).log())

    trivial = -float(balance(lambda s: 0 * s, test, 40).log())
    return Run(module, ticks(300, seed), evaluated(log_cost), trivial, {"max_steps": 300})


RUNS = [
    char_irnn_unclipped,
    postnorm_vit_rate,
    sentinel_rows,
    poisson_sum,
    siamese_root,
    warmup_without_end,
    normal_init,
    pendulum_through_time,
]
