"""Eight programs with one mistake each, as they happen; with ``twin=True`` the mistake is absent."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, make_friedman1
from torch import nn

from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard


def adding_irnn(seed, twin=False):
    """A recurrent network of ReLUs with identity recurrence learns to add two marked numbers, with SGD and momentum.
    The mistake: the gradient clipping of the paper it is copied from was left out."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.RNN(2, 48, nonlinearity="relu", batch_first=True), nn.Linear(48, 1)
            nn.init.eye_(self.rnn.weight_hh_l0)
            nn.init.normal_(self.rnn.weight_ih_l0, std=0.3)
            nn.init.zeros_(self.rnn.bias_ih_l0)
            nn.init.zeros_(self.rnn.bias_hh_l0)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])[:, 0]

    def make(n, s, length=12):
        g = G(s)
        v, m = torch.rand(n, length, generator=g), torch.zeros(n, length)
        i, j = torch.randint(0, 6, (n, 1), generator=g), torch.randint(6, length, (n, 1), generator=g)
        m.scatter_(1, i, 1.0).scatter_(1, j, 1.0)
        return torch.stack([v, m], -1), (v * m).sum(1)

    x, y = make(8000, seed)
    xt, yt = make(1000, seed + 999)
    task = Task(
        Net(),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    )
    trainer = {"max_steps": 1500, **({"gradient_clip_val": 1.0} if twin else {})}
    return Run(task, loader(x, y, seed=seed), lambda m: r2(m.net(xt).detach(), yt), 0.0, trainer)


def recommender_sum(seed, twin=False):
    """Matrix factorisation of ratings with biases, by SGD with momentum.
    The mistake: the squared errors of a batch are summed, with the rate found for their mean."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.i = nn.Embedding(150, 9), nn.Embedding(100, 9)
            for e in (self.u, self.i):
                nn.init.normal_(e.weight, std=0.3)

        def forward(self, u, i):
            u, i = self.u(u), self.i(i)
            return (u[:, 1:] * i[:, 1:]).sum(1) + u[:, 0] + i[:, 0]

    g = G(seed)
    a, b = torch.randn(150, 3, generator=g), torch.randn(100, 3, generator=g)
    u, i = torch.randint(0, 150, (9000,), generator=g), torch.randint(0, 100, (9000,), generator=g)
    y = (a[u] * b[i]).sum(1) / 1.5 + 0.2 * torch.randn(9000, generator=g)
    tr, te = split(9000, seed)
    reduction = "mean" if twin else "sum"
    task = Task(
        Net(),
        lambda m, z: F.mse_loss(m.net(z[0], z[1]), z[2], reduction=reduction),
        lambda p: torch.optim.SGD(p, lr=2.0, momentum=0.9),
    )
    data = loader(u[tr], i[tr], y[tr], batch=256, seed=seed)
    return Run(task, data, lambda m: r2(m.net(u[te], i[te]).detach(), y[te]), 0.0, {"max_steps": 1000})


def sentinel_rows(seed, twin=False):
    """Regression on a table with an MLP by SGD with momentum, features scaled by constants known beforehand.
    The fault: in a few training rows a missing value stands as -9999; in the twin it is filled with the mean."""
    x, y = make_friedman1(2000, noise=0.5, random_state=seed)
    tr, te = split(2000, seed)
    x, _, _ = standard(x, tr)
    y, _, _ = standard(y, tr)
    x, y = T(x), T(y)
    for k in range(6):
        x[tr[k * 200], k] = 0.0 if twin else (-9999 - 0.5) / 0.29
    task = Task(
        mlp(10, 64, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    )
    data = loader(x[tr], y[tr], seed=seed)
    return Run(task, data, lambda m: r2(m.net(x[te]).detach(), y[te]), 0.0, {"max_steps": 1200})


def siamese_sqrt(seed, twin=False):
    """A Siamese network on digits with contrastive loss; scored by the nearest class mean in the embedding.
    The mistake: the distance is a bare square root, whose gradient is NaN when a picture is paired with itself."""
    d = load_digits()
    x, y = T(d.data / 16), L(d.target)
    tr, te = split(len(y), seed)
    xa, ya = x[tr], y[tr]
    eps = 1e-6 if twin else 0.0

    def loss(m, b):
        j = torch.randint(0, len(ya), (len(b[0]),))
        dist = torch.sqrt(((m.net(b[0]) - m.net(xa[j])) ** 2).sum(1) + eps)
        same = (b[1] == ya[j]).float()
        return (same * dist**2 + (1 - same) * F.relu(1.0 - dist) ** 2).mean()

    def score(m):
        with torch.no_grad():
            a, b = m.net(xa), m.net(x[te])
        return accuracy(-torch.cdist(b, torch.stack([a[ya == c].mean(0) for c in range(10)])), y[te])

    task = Task(mlp(64, 64, 64, 8), loss, lambda p: torch.optim.Adam(p, lr=1e-3))
    return Run(task, loader(xa, ya, batch=64, seed=seed), score, majority(y[te]), {"max_steps": 800})


def endless_warmup(seed, twin=False):
    """A small Transformer encoder learns to reverse sequences, with AdamW and linear warmup by LambdaLR.
    The mistake: the ``min(1, ...)`` is missing, so that the rate grows to the end of training."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.pos = nn.Embedding(10, 32), nn.Parameter(0.1 * torch.randn(8, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
            self.enc, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

        def forward(self, x):
            return self.out(self.enc(self.emb(x) + self.pos))

    x = torch.randint(0, 10, (6000, 8), generator=G(seed))
    xt = torch.randint(0, 10, (500, 8), generator=G(seed + 999))
    task = Task(
        Net(),
        lambda m, b: F.cross_entropy(m.net(b[0]).flatten(0, 1), b[0].flip(1).flatten()),
        lambda p: torch.optim.AdamW(p, lr=3e-3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 20) if twin else (s + 1) / 20),
    )
    score = lambda m: accuracy(m.net(xt).detach().flatten(0, 1), xt.flip(1).flatten())
    return Run(task, loader(x, batch=64, seed=seed), score, 0.1, {"max_steps": 1000})


def cnn_bytes(seed, twin=False):
    """A convolutional network on pictures of digits by SGD with Nesterov momentum.
    The mistake: the pictures go in as bytes, 0 to 255, not divided by 255 (ToTensor was forgotten)."""
    d = load_digits()
    x, y = T(d.images[:, None] / 16 * 255), L(d.target)
    x = x / 255 if twin else x
    tr, te = split(len(y), seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
    )
    data = loader(x[tr], y[tr], seed=seed)
    return Run(task, data, lambda m: accuracy(m.net(x[te]).detach(), y[te]), majority(y[te]), {"max_steps": 600})


class ActorCritic(Manual):
    def __init__(self, actor, critic, lr, reward):
        super().__init__()
        self.actor, self.critic, self.lr, self.reward = actor, critic, lr, reward

    def training_step(self, batch, _):
        x, y = batch
        dist = torch.distributions.Categorical(logits=self.actor(x))
        a, v = dist.sample(), self.critic(x)[:, 0]
        r = self.reward(a, y)
        oa, oc = self.optimizers()
        self.update(oa, -(dist.log_prob(a) * (r - v.detach())).mean() - 0.01 * dist.entropy().mean())
        self.update(oc, F.mse_loss(v, r))

    def configure_optimizers(self):
        return torch.optim.Adam(self.actor.parameters(), self.lr), torch.optim.Adam(self.critic.parameters(), 2e-3)


def bandit_rate(seed, twin=False):
    """Actor and critic, with an optimizer each, on a contextual bandit: choose the digit, get a reward if right.
    The mistake: the actor's rate is 0.2 for 0.002 (a slip of the decimal point), and the policy collapses."""
    d = load_digits()
    x, y = T(d.data / 16), L(d.target)
    tr, te = split(len(y), seed)
    lr = 0.002 if twin else 0.2
    m = ActorCritic(mlp(64, 64, 64, 10), mlp(64, 64, 1), lr, lambda a, y: (a == y).float())
    data = loader(x[tr], y[tr], batch=64, seed=seed)
    return Run(m, data, lambda m: accuracy(m.actor(x[te]).detach(), y[te]), majority(y[te]), {"max_steps": 2400})


def vae_onecycle(seed, twin=False):
    """A variational autoencoder on digits with Adam and OneCycleLR; scored by the reconstruction of held-out digits.
    The mistake: a peak rate of 0.3, which belonged to SGD, not 0.003."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(64, 128, 32), mlp(16, 128, 64)

        def forward(self, x):
            mu, logvar = self.enc(x).chunk(2, 1)
            return self.dec(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar

    def loss(m, b):
        rec, mu, logvar = m.net(b[0])
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
        return (10 * ((rec - b[0]) ** 2).sum(1) + kl).mean()

    x = T(load_digits().data / 16)
    tr, te = split(len(x), seed)
    mean = x[tr].mean(0)
    peak = 0.003 if twin else 0.3
    task = Task(
        Net(),
        loss,
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=peak, total_steps=1001),
    )

    def score(m):
        with torch.no_grad():
            return r2(m.net.dec(m.net.enc(x[te]).chunk(2, 1)[0]) - mean, x[te] - mean)

    return Run(task, loader(x[tr], batch=64, seed=seed), score, 0.0, {"max_steps": 1000})


RUNS = [
    adding_irnn,
    recommender_sum,
    sentinel_rows,
    siamese_sqrt,
    endless_warmup,
    cnn_bytes,
    bandit_rate,
    vae_onecycle,
]
