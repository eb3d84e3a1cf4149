"""Eight programs with a mistake; ``twin=True`` is the same program with the mistake corrected by hand."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from common import L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, ticks


def cross(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


def square(m, b):
    return F.mse_loss(m.net(b[0]).squeeze(-1), b[1])


@torch.no_grad()
def predict(m, x):
    m.eval()
    return m.net(x).float()


class Reviews(nn.Module):
    """A small post-norm transformer that classifies sentences of 24 words."""

    def __init__(self, words, classes, d=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(words, d), nn.Parameter(torch.randn(24, d) * 0.02)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True), 2)
        self.out = nn.Linear(d, classes)

    def forward(self, w):
        return self.out(self.enc(self.emb(w) + self.pos).mean(1))


def reviews_rate(seed, twin):
    """A transformer's Adam is given SGD's usual rate, 0.1; corrected: 0.001."""
    r = np.random.RandomState(seed)
    topics = r.dirichlet(np.full(200, 0.3), 6)
    y = r.randint(6, size=2400)
    x = np.stack([r.choice(200, 24, p=0.4 * topics[k] + 0.6 / 200) for k in y])
    tr, te = split(2400, seed)
    x, y = L(x), L(y)
    m = Task(Reviews(200, 6), cross, lambda p: torch.optim.Adam(p, lr=1e-3 if twin else 0.1))
    return Run(
        m,
        loader(x[tr], y[tr], batch=16, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 400},
    )


def digits_warmup_units(seed, twin):
    """The warm-up's factor is the number of the step (up to 100), not its share of the warm-up; corrected: divided
    by 100."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(x / 16 - 0.3).view(-1, 1, 8, 8), L(y)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    m = Task(
        net,
        cross,
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=5e-4),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(s + 1, 100) / (100 if twin else 1)),
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 500},
    )


class Graph(nn.Module):
    """A graph network of four layers that classifies nodes by their number."""

    def __init__(self, adj, x, classes, width=64):
        super().__init__()
        self.register_buffer("adj", adj)
        self.register_buffer("x", x)
        d = [x.shape[1], width, width, width, classes]
        self.lins = nn.ModuleList(nn.Linear(a, b) for a, b in zip(d, d[1:]))

    def forward(self, nodes):
        h = self.x
        for i, lin in enumerate(self.lins):
            h = self.adj @ lin(h)
            h = F.relu(h) if i < 3 else h
        return h[nodes]


def graph_init(seed, twin):
    """The weights of a graph network are torch.rand, between 0 and 1; corrected: Xavier's initialisation."""
    r = np.random.RandomState(seed)
    n, k = 500, 5
    y = r.randint(k, size=n)
    p = np.where(y[:, None] == y[None], 0.035, 0.012)
    a = np.triu(r.rand(n, n) < p, 1)
    a = a + a.T + np.eye(n)
    d = a.sum(1) ** -0.5
    a = a * d[:, None] * d[None]
    x = r.randn(n, 40) + 0.6 * r.randn(k, 40)[y]
    tr, te = split(n, seed)
    y = L(y)
    net = Graph(T(a), T(x), k)
    for lin in net.lins:
        nn.init.xavier_uniform_(lin.weight) if twin else nn.init.uniform_(lin.weight)
    m = Task(net, cross, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=5e-2))
    return Run(
        m,
        loader(L(tr), y[tr], batch=64, seed=seed),
        lambda m: accuracy(predict(m, L(te)), y[te]),
        majority(y[te]),
        {"max_steps": 300},
    )


def house_prices(seed, twin):
    """Prices are regressed in euros (about 250 000) with SGD's rate of a standardised target; corrected:
    standardised target."""
    r = np.random.RandomState(seed)
    x = r.randn(2000, 12)
    y = x[:, 0] + np.sin(2 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3] + np.abs(x[:, 4]) + 0.2 * r.randn(2000)
    y = 250_000 + 60_000 * y
    tr, te = split(2000, seed)
    mean, dev = (y[tr].mean(), y[tr].std()) if twin else (0.0, 1.0)
    x, y = T(x), T(y)
    m = Task(
        mlp(12, 64, 64, 1),
        square,
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 800),
    )
    return Run(
        m,
        loader(x[tr], (y[tr] - mean) / dev, batch=32, seed=seed),
        lambda m: r2(predict(m, x[te]) * dev + mean, y[te]),
        0.0,
        {"max_steps": 800},
    )


class Factors(nn.Module):
    """Biases and ten factors of users and items."""

    def __init__(self, users, items, mean):
        super().__init__()
        self.mean = mean
        self.u, self.i = nn.Embedding(users, 10), nn.Embedding(items, 10)
        self.bu, self.bi = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for e in (self.u, self.i):
            nn.init.normal_(e.weight, std=0.1)
        for e in (self.bu, self.bi):
            nn.init.zeros_(e.weight)

    def forward(self, x):
        u, i = x[:, 0], x[:, 1]
        return self.mean + (self.u(u) * self.i(i)).sum(-1) + self.bu(u)[:, 0] + self.bi(i)[:, 0]


def ratings_missing_code(seed, twin):
    """Of the exported ratings 0.3 % are the code of a missing one, 99999; corrected: those rows are dropped."""
    r = np.random.RandomState(seed)
    u, i = r.randint(200, size=16000), r.randint(150, size=16000)
    bu, bi, p, q = 0.6 * r.randn(200), 0.6 * r.randn(150), 0.5 * r.randn(200, 3), 0.6 * r.randn(150, 3)
    y = np.clip(3.3 + bu[u] + bi[i] + (p[u] * q[i]).sum(1) + 0.3 * r.randn(16000), 1, 5)
    tr, te = split(16000, seed)
    x, y = L(np.stack([u, i], 1)), T(y)
    kept = y.clone()
    y[T(r.choice(tr, 36, replace=False), torch.long)] = 99999.0
    if twin:
        tr = tr[(y[tr] < 10).numpy()]
    m = Task(
        Factors(200, 150, 3.3), lambda m, b: F.mse_loss(m.net(b[0]), b[1]), lambda p: torch.optim.Adagrad(p, lr=0.2)
    )
    return Run(
        m, loader(x[tr], y[tr], batch=64, seed=seed), lambda m: r2(predict(m, x[te]), kept[te]), 0.0, {"max_steps": 900}
    )


class Pairs(torch.utils.data.Dataset):
    """Pairs of pictures, half of them of one class; a picture may meet itself unless ``other``."""

    def __init__(self, x, y, n, seed, other):
        r = np.random.RandomState(seed)
        self.x, self.rows = x, []
        for t in range(n):
            a = r.randint(len(y))
            pool = np.flatnonzero((y == y[a]) if t % 2 else (y != y[a]))
            if t % 2 and other:
                pool = pool[pool != a]
            self.rows.append((a, r.choice(pool), float(t % 2)))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, t):
        a, b, same = self.rows[t]
        return self.x[a], self.x[b], torch.tensor(same)


def siamese_sqrt(seed, twin):
    """A contrastive loss takes sqrt(sum of squares) of pairs that may be one picture twice: NaN gradients;
    corrected: + 1e-8."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x = T(x / 16)
    pairs, test = Pairs(x[tr], y[tr], 8000, seed, False), Pairs(x[te], y[te], 1500, seed + 1, True)

    def distance(m, a, b):
        return ((m.net(a) - m.net(b)) ** 2).sum(-1).add(1e-8 if twin else 0.0).sqrt()

    def loss(m, b):
        d = distance(m, b[0], b[1])
        return (b[2] * d**2 + (1 - b[2]) * F.relu(2 - d) ** 2).mean()

    @torch.no_grad()
    def score(m):
        a, b, s = (torch.stack(c) for c in zip(*(test[t] for t in range(1500))))
        d = distance(m, a, b)
        if not torch.isfinite(d).all():
            return float("nan")
        return float((d[s == 1][:, None] < d[s == 0][None]).double().mean())

    m = Task(mlp(64, 64, 16), loss, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    train = torch.utils.data.DataLoader(
        pairs, batch_size=64, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed)
    )
    return Run(m, train, score, 0.5, {"max_steps": 500})


class Bandit(Manual):
    """A contextual bandit with a policy and a baseline, each with its optimizer."""

    def __init__(self, zero, seed):
        super().__init__()
        self.zero = zero
        self.actor, self.critic = mlp(8, 32, 5), mlp(8, 32, 1)
        self.register_buffer("w", torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)))

    def pay(self, x, a):
        return (x @ self.w).gather(1, a[:, None])[:, 0]

    def step_of(self, opt, loss):
        if self.zero:
            opt.zero_grad()
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def training_step(self, batch, _):
        g = torch.Generator().manual_seed(int(batch[0][0]))
        x = torch.randn(64, 8, generator=g)
        dist = torch.distributions.Categorical(logits=self.actor(x))
        a = torch.multinomial(dist.probs.detach(), 1, generator=g)[:, 0]
        reward = self.pay(x, a) + 0.3 * torch.randn(64, generator=g)
        value = self.critic(x)[:, 0]
        oa, oc = self.optimizers()
        self.step_of(oc, F.mse_loss(value, reward))
        loss = -(dist.log_prob(a) * (reward - value.detach())).mean() - 0.01 * dist.entropy().mean()
        self.step_of(oa, loss)
        self.log("loss", loss)

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.actor.parameters(), lr=0.05, momentum=0.9),
            torch.optim.SGD(self.critic.parameters(), lr=0.05, momentum=0.9),
        )


def bandit_zero_grad(seed, twin):
    """Manual optimization of a policy and its baseline without zero_grad, so gradients pile up; corrected:
    zero_grad."""
    m = Bandit(twin, seed)
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(seed + 9))

    @torch.no_grad()
    def score(m):
        z = m.actor(x)
        return float(m.pay(x, z.argmax(-1)).mean()) if torch.isfinite(z).all() else float("nan")

    return Run(m, ticks(400, seed), score, float((x @ m.w).mean()), {"max_steps": 1200})  # two optimizer steps a batch


class Forecast(nn.Module):
    """A recurrent network that forecasts the next value."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Averaged(Task):
    """Puts the average of ten snapshots (steps 350 to 440) in place of the weights; a sum where ``mean`` is not set."""

    def __init__(self, *a, mean):
        super().__init__(*a)
        self.mean, self.kept = mean, []

    def on_train_batch_end(self, *_):
        if 350 <= self.global_step <= 440 and self.global_step % 10 == 0:
            self.kept.append([p.detach().clone() for p in self.net.parameters()])
        if self.global_step == 440:
            with torch.no_grad():
                for p, *old in zip(self.net.parameters(), *self.kept):
                    p.copy_(torch.stack(old).sum(0) / (len(old) if self.mean else 1))


def forecast_swa_sum(seed, twin):
    """At step 440 of 500 the averaged weights replace the weights, but are a sum of ten snapshots; corrected:
    divided by ten."""
    r = np.random.RandomState(seed)
    t = np.arange(3000)
    s = np.sin(t / 5) + 0.6 * np.sin(t / 13 + 1) + 0.1 * r.randn(3000)
    x = T(np.stack([s[j : j + 12] for j in range(2900)]))[..., None]
    y = T(s[12:2912])
    tr, te = slice(0, 2200), slice(2300, 2900)
    m = Averaged(
        Forecast(),
        square,
        lambda p: torch.optim.Adam(p, lr=5e-3),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 500),
        mean=twin,
    )
    return Run(
        m, loader(x[tr], y[tr], batch=32, seed=seed), lambda m: r2(predict(m, x[te]), y[te]), 0.0, {"max_steps": 500}
    )


RUNS = [
    reviews_rate,
    digits_warmup_units,
    graph_init,
    house_prices,
    ratings_missing_code,
    siamese_sqrt,
    bandit_zero_grad,
    forecast_swa_sum,
]
