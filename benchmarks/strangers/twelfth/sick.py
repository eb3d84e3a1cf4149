"""Sick runs: each has one mistake, which ``twin=True`` corrects."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn import datasets
from torch import nn


def digits(seed):
    """Digits as images of 0 to 1, with labels, split by the seed."""
    d = datasets.load_digits()
    tr, te = split(len(d.target), seed)
    x, y = T(d.images / 16.0).unsqueeze(1), L(d.target)
    return x[tr], y[tr], x[te], y[te]


@torch.no_grad()
def out(net, x):
    net.eval()
    return net(x).float()


def salary_in_dollars(seed, twin=False):
    """Tabular regression (diabetes) by SGD with momentum. The mistake: the target is given in single units (its value
    times 100), where the rate was tuned for standardised targets."""
    d = datasets.load_diabetes()
    tr, te = split(len(d.target), seed)
    x = standard(d.data, tr)[0]
    y = standard(d.target, tr)[0] if twin else d.target * 100.0
    net = mlp(10, 32, 1)
    x, y = T(x), T(y)
    return Run(
        Task(
            net,
            lambda m, b: F.mse_loss(m.net(b[0]).squeeze(1), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9, weight_decay=1e-3),
        ),
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: r2(out(m.net, x[te]), y[te]),
        0.0,
        {"max_steps": 1400},
    )


def half_with_default_eps(seed, twin=False):
    """A digits MLP held wholly in float16 and trained by Adam. The mistake: eps is left at 1e-8, which is zero in
    half precision (the twin has 1e-4)."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(nn.Flatten(), *mlp(64, 128, 64, 10)).half()
    return Run(
        Task(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0].half()).float(), b[1]),
            lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4 if twin else 1e-8, foreach=False),
        ),
        loader(x, y, batch=64, seed=seed),
        lambda m: accuracy(out(m.net, xt.half()), yt),
        majority(yt),
        {"max_steps": 700},
    )


def log_of_sigmoid(seed, twin=False):
    """Breast cancer with a residual MLP and Nesterov momentum. The mistake: the binary cross-entropy is written by
    hand as y log p + (1 - y) log(1 - p), without the stable form from logits."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), T(d.target)
    net = mlp(30, 128, 128, 1)

    def loss(m, b):
        z = m.net(b[0]).squeeze(1)
        if twin:
            return F.binary_cross_entropy_with_logits(z, b[1])
        p = torch.sigmoid(z)
        return -(b[1] * p.log() + (1 - b[1]) * (1 - p).log()).mean()

    def score(m):
        z = out(m.net, x[te]).squeeze(1)
        return accuracy(torch.stack([-z, z], 1), y[te].long())

    return Run(
        Task(net, loss, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        loader(x[tr], y[tr], batch=16, seed=seed),
        score,
        majority(y[te].long()),
        {"max_steps": 1300},
    )


def flower(seed):
    """Windows of 16 x 16 pixels of scikit-learn's sample photographs in grey, of 0 to 1."""
    rng = np.random.RandomState(seed)
    im = [a.mean(2)[::2, ::2] / 255.0 for a in datasets.load_sample_images().images]
    w = []
    for _ in range(1600):
        a = im[rng.randint(2)]
        i, j = rng.randint(a.shape[0] - 16), rng.randint(a.shape[1] - 16)
        w.append(a[i : i + 16, j : j + 16])
    return T(np.stack(w)).unsqueeze(1)


def rate_scaled_again_on_resume(seed, twin=False):
    """A convolutional denoiser of photographs, resumed with its Adam state after a first part. The mistake: the
    launcher multiplies the saved rate by the number of workers (64) once more; the saved one is scaled already."""
    torch.manual_seed(seed)
    x = flower(seed)
    noisy = x + 0.15 * torch.randn(x.shape, generator=G(seed + 7))
    a, b = slice(0, 1200), slice(1200, 1600)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1),
    )  # fmt: skip
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for xb, nb in loader(x[a], noisy[a], batch=16, seed=seed + 1):
        opt.zero_grad()
        F.mse_loss(net(nb), xb).backward()
        opt.step()
    state = copy.deepcopy(opt.state_dict())

    def resumed(p):
        new = torch.optim.Adam(p, lr=3e-3)
        new.load_state_dict(copy.deepcopy(state))
        if not twin:
            for g in new.param_groups:
                g["lr"] *= 64
        return new

    return Run(
        Task(net, lambda m, b: F.mse_loss(m.net(b[1]), b[0]), resumed),
        loader(x[a], noisy[a], batch=16, seed=seed),
        lambda m: r2(out(m.net, noisy[b]), x[b]),
        0.0,
        {"max_steps": 400},
    )


class Recurrent(nn.Module):
    """A GRU's last state, and a linear layer."""

    def __init__(self, d, h, o):
        super().__init__()
        self.rnn, self.head = nn.GRU(d, h, batch_first=True), nn.Linear(h, o)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def gamma_above_one(seed, twin=False):
    """Forecasting of a noisy seasonal series by a GRU and RMSprop, clipped to norm 1 by its author. The mistake: the
    exponential decay has a gamma of 1.02 instead of 1 / 1.002, so that the rate grows."""
    rng = np.random.RandomState(seed)
    t = np.arange(3000)
    s = np.sin(t / 7.0) + 0.6 * np.sin(t / 2.9 + 1) + 0.1 * rng.randn(3000)
    w = np.stack([s[i : i + 21] for i in range(2900)])
    x, y = T(w[:, :20]).unsqueeze(2), T(w[:, 20])
    return Run(
        Task(
            Recurrent(1, 24, 1),
            lambda m, b: F.mse_loss(m.net(b[0]).squeeze(1), b[1]),
            lambda p: torch.optim.RMSprop(p, lr=1e-3),
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 1 / 1.002 if twin else 1.02),
        ),
        loader(x[:2200], y[:2200], batch=32, seed=seed),
        lambda m: r2(out(m.net, x[2300:]), y[2300:]),
        0.0,
        {"max_steps": 500, "gradient_clip_val": 1.0},
    )


class Attend(nn.Module):
    """Word embeddings pooled by one masked attention."""

    def __init__(self, words, d, classes, fill):
        super().__init__()
        self.emb, self.key, self.head = nn.Embedding(words, d), nn.Linear(d, 1), mlp(d, d, classes)
        self.fill = fill

    def forward(self, t):
        e = self.emb(t)
        a = self.key(torch.tanh(e)).squeeze(-1).masked_fill(t == 0, self.fill)
        return self.head((a.softmax(1).unsqueeze(-1) * e).sum(1))


def sentences(seed, n=2400, words=60, length=14):
    """Sentences of four topics' words among common words, padded with 0, and the topic."""
    rng = np.random.RandomState(seed)
    topic = rng.randint(4, size=n)
    t = np.zeros((n, length), dtype=np.int64)
    for i in range(n):
        k = rng.randint(4, length + 1)
        own = rng.rand(k) < 0.35
        t[i, :k] = np.where(own, 1 + 8 * topic[i] + rng.randint(8, size=k), rng.randint(1, words, size=k))
    return t, topic


def empty_sentence_masked_with_inf(seed, twin=False):
    """Topics of short texts by attention pooling and AdamW. The mistake: padding is masked with minus infinity, and a
    few of the texts are empty after cleaning, so that their softmax is 0 / 0."""
    t, topic = sentences(seed)
    t[np.random.RandomState(seed + 1).choice(1800, 12, replace=False)] = 0
    t, y = L(t), L(topic)
    return Run(
        Task(
            Attend(60, 32, 4, -1e4 if twin else -math.inf),
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.01),
        ),
        loader(t[:1800], y[:1800], batch=32, seed=seed),
        lambda m: accuracy(out(m.net, t[1800:]), y[1800:]),
        majority(y[1800:]),
        {"max_steps": 1000},
    )


class Factors(Manual):
    """Matrix factorisation with biases, by manual optimisation and plain SGD."""

    def __init__(self, users, items, d, lr, forget):
        super().__init__()
        self.u, self.v = nn.Embedding(users, d), nn.Embedding(items, d)
        self.bu, self.bv = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for e in (self.u, self.v):
            nn.init.normal_(e.weight, std=0.3)
        for e in (self.bu, self.bv):
            nn.init.zeros_(e.weight)
        self.lr, self.forget = lr, forget

    def forward(self, i, j):
        return (self.u(i) * self.v(j)).sum(1) + self.bu(i).squeeze(1) + self.bv(j).squeeze(1)

    def training_step(self, batch, _):
        i, j, r = batch
        loss = F.mse_loss(self(i, j), r)
        opt = self.optimizers()
        if not self.forget:
            return self.update(opt, loss)
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def ratings(seed, users=80, items=60, d=3, n=4000):
    rng = np.random.RandomState(seed)
    u, v = rng.randn(users, d), rng.randn(items, d)
    i, j = rng.randint(users, size=n), rng.randint(items, size=n)
    r = (u[i] * v[j]).sum(1) / d**0.5 + 0.5 * rng.randn(users)[i] + 0.5 * rng.randn(items)[j] + 0.2 * rng.randn(n)
    return L(i), L(j), T((r - r.mean()) / r.std())


def zero_grad_forgotten(seed, twin=False):
    """Recommendation by matrix factorisation, manual optimisation and SGD. The mistake: zero_grad is never called, so
    that the gradients of all steps add up."""
    i, j, r = ratings(seed)
    k = 3200
    return Run(
        Factors(80, 60, 8, 2.0, not twin),
        loader(i[:k], j[:k], r[:k], batch=64, seed=seed),
        lambda m: r2(m(i[k:], j[k:]).detach(), r[k:]),
        0.0,
        {"max_steps": 1200},
    )


class VAE(nn.Module):
    def __init__(self, d=64, h=64, z=8):
        super().__init__()
        self.enc, self.dec, self.z = mlp(d, h, h, 2 * z), mlp(z, h, h, d), z

    def forward(self, x):
        return self.dec(self.enc(x)[:, : self.z])


def vae_loss(m, b):
    x = b[0]
    mu, lv = m.net.enc(x).chunk(2, 1)
    rec = m.net.dec(mu + (0.5 * lv).exp() * torch.randn_like(mu))
    kl = 0.5 * (mu**2 + lv.exp() - 1 - lv).sum(1)
    return (((rec - x) ** 2).sum(1) / 0.1 + kl).mean()


def fine_tuned_on_raw_pixels(seed, twin=False):
    """A variational autoencoder of digits, trained on the digits 0 to 4 and fine-tuned on all by SGD with momentum. The
    mistake: the second data pipeline gives raw pixels of 0 to 255 where the first part had 0 to 1."""
    torch.manual_seed(seed)
    x, y, xt, _ = digits(seed)
    x, xt = x.flatten(1), xt.flatten(1)
    net = VAE()
    first = Task(net, vae_loss, None)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    for e in range(8):
        for b in loader(x[y < 5], batch=32, seed=seed + 10 + e):
            opt.zero_grad()
            vae_loss(first, b).backward()
            opt.step()
    k = 1.0 if twin else 255.0
    return Run(
        Task(net, vae_loss, lambda p: torch.optim.SGD(p, lr=5e-4, momentum=0.9)),
        loader(x * k, batch=32, seed=seed),
        lambda m: r2(out(m.net, xt * k), xt * k),
        0.0,
        {"max_steps": 1000},
    )


class Rows(nn.Module):
    """A post-norm transformer over the eight rows of a digit."""

    def __init__(self, d=32, depth=6):
        super().__init__()
        self.inp, self.pos = nn.Linear(8, d), nn.Parameter(0.02 * torch.randn(8, d))
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), nn.Linear(d, 10)

    def forward(self, x):
        return self.head(self.body(self.inp(x.squeeze(1)) + self.pos).mean(1))


def warm_up_forgotten(seed, twin=False):
    """A post-norm transformer of six layers over the rows of digits, by Adam. The mistake: the warm-up over 150
    steps is missing and the rate is at its height from the first step."""
    x, y, xt, yt = digits(seed)

    def sched(o):
        return torch.optim.lr_scheduler.LambdaLR(
            o, lambda k: min(1.0, (k + 1) / 150 if twin else 1.0) * min(1.0, (150 / (k + 1)) ** 0.5)
        )

    return Run(
        Task(
            Rows(),
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.Adam(p, lr=8e-3, betas=(0.9, 0.98), eps=1e-9),
            sched,
        ),
        loader(x, y, batch=16, seed=seed),
        lambda m: accuracy(out(m.net, xt), yt),
        majority(yt),
        {"max_steps": 450},
    )


@torch.no_grad()
def drive(policy, g, n=48, steps=25, greedy=False):
    """Carts on a line that are to be brought to 0 by a push left, none or right: states, actions, rewards in m^2."""
    x, v = 2 * torch.rand(n, generator=g) - 1, torch.zeros(n)
    ss, aa, rr = [], [], []
    for _ in range(steps):
        s = torch.stack([x, v], 1)
        z = policy(s)
        a = z.argmax(1) if greedy else torch.multinomial(z.softmax(1), 1, generator=g).squeeze(1)
        v = 0.9 * v + 0.08 * (a - 1)
        x = x + v
        ss.append(s)
        aa.append(a)
        rr.append(-(x**2))
    return torch.stack(ss), torch.stack(aa), torch.stack(rr)


def returns(r, gamma=0.95):
    out, acc = [], torch.zeros(r.shape[1])
    for k in range(len(r) - 1, -1, -1):
        acc = r[k] + gamma * acc
        out.append(acc)
    return torch.stack(out[::-1])


def drive_score(policy, seed):
    if not all(torch.isfinite(p).all() for p in policy.parameters()):
        return float("nan")
    return float(drive(policy, G(seed + 9000), 400, greedy=True)[2].sum(0).mean().clamp(min=-1e3))


def rewards_in_square_millimetres(seed, twin=False):
    """Policy gradient with a baseline and an entropy bonus (SGD, momentum) for carts that are to be brought to a place.
    The mistake: the reward is in mm^2, where rate and bonus were tuned for m^2."""

    def loss(m, b):
        s, a, r = drive(m.net, G(int(b[0])))
        ret = returns(r * (1.0 if twin else 1e6))
        lp = m.net(s).log_softmax(-1)
        adv = ret - ret.mean(1, keepdim=True)
        ent = -(lp.exp() * lp).sum(-1).mean()
        return -(lp.gather(-1, a.unsqueeze(-1)).squeeze(-1) * adv).mean() - 0.02 * ent

    net = mlp(2, 32, 32, 3)
    return Run(
        Task(net, loss, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9)),
        ticks(400, seed),
        lambda m: drive_score(m.net, seed),
        float(drive(lambda s: torch.zeros(len(s), 3), G(seed + 9001), 400)[2].sum(0).mean()),
        {"max_steps": 400},
    )


RUNS = [
    salary_in_dollars,
    half_with_default_eps,
    log_of_sigmoid,
    rate_scaled_again_on_resume,
    gamma_above_one,
    empty_sentence_masked_with_inf,
    zero_grad_forgotten,
    fine_tuned_on_raw_pixels,
    warm_up_forgotten,
    rewards_in_square_millimetres,
]
