"""Ten programs with one mistake each; ``twin=True`` is the same program with the mistake corrected by hand."""

import copy
import functools
import math

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard
from lightning.pytorch import Callback, Trainer
from pydoc_data.topics import topics
from sklearn.datasets import load_digits, load_wine
from sklearn.neighbors import kneighbors_graph
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


# Vision


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

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
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                b1, b2 = g["betas"]
                p.mul_(1 - g["lr"] * g["weight_decay"]).add_((b1 * m + (1 - b1) * p.grad).sign_(), alpha=-g["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


def digit_images(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    return T(x[tr] / 16).view(-1, 1, 8, 8), L(y[tr]), T(x[te] / 16).view(-1, 1, 8, 8), L(y[te])


def lion_with_sgd_rate(seed, twin):
    """Changed SGD for Lion and kept SGD's rate of 0.1; corrected: 5e-4."""
    x, y, xt, yt = digit_images(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: Lion(p, lr=5e-4 if twin else 0.1, weight_decay=0.01),
    )
    return Run(task, loader(x, y, seed=seed), lambda m: accuracy(m.net(xt), yt), majority(yt), {"max_steps": 700})


# Text


class CharGRU(nn.Module):
    """A language model of characters; embedding and output share their weight."""

    def __init__(self, vocab, d=64):
        super().__init__()
        self.emb, self.gru, self.head = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True), nn.Linear(d, vocab)
        nn.init.normal_(self.emb.weight, std=0.2)
        self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.gru(self.emb(x))[0])


@functools.cache
def manual_text(length):
    """Python's manual in characters, cut in windows; the unigram log-likelihood of its held-out part."""
    text = "".join(
        topics[k]
        for k in (
            "assignment",
            "import",
            "strings",
            "typesseq",
            "naming",
            "function",
            "class",
            "operator-summary",
            "exceptions",
            "while",
        )
        if k in topics
    )
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(c) for c in text])
    w = ids[: len(ids) // length * length].view(-1, length)
    k = int(len(w) * 0.9)
    p = (torch.bincount(w[:k].reshape(-1), minlength=len(chars)).double() + 1) / (w[:k].numel() + len(chars))
    return w[:k], w[k:], len(chars), float(p.log()[w[k:]].mean())


def likelihood(net, w):
    with torch.no_grad():
        return -float(F.cross_entropy(net(w[:, :-1]).transpose(1, 2), w[:, 1:]))


class Averaged(Task):
    """A task that is scored by the moving average of its weights."""

    def __init__(self, *args):
        super().__init__(*args)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)

    def configure_optimizers(self):
        opt = self._opt(self.net.parameters())
        return {"optimizer": opt, "lr_scheduler": {"scheduler": self._sched(opt), "interval": "step"}}

    @torch.no_grad()
    def on_train_batch_end(self, *_):
        for a, b in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            a.lerp_(b, 0.03)


def warmup_without_cap(seed, twin):
    """A linear warm-up of 15 steps whose factor is never capped at 1, so that the rate grows for ever; corrected:
    min(1, ...)."""
    w, wt, vocab, trivial = manual_text(33)
    task = Averaged(
        CharGRU(vocab),
        lambda m, b: F.cross_entropy(m.net(b[0][:, :-1]).transpose(1, 2), b[0][:, 1:]),
        lambda p: torch.optim.AdamW(p, lr=6e-3, weight_decay=0.01),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 15) if twin else (s + 1) / 15),
    )
    return Run(task, loader(w, batch=16, seed=seed), lambda m: likelihood(m.ema, wt[:60]), trivial, {"max_steps": 800})


# Tabular


def raw_columns(seed, twin):
    """Wine's columns (an acidity near 0.3, proline near 1000) fed without scaling to SGD with momentum; corrected:
    standardised."""
    x, y = load_wine(return_X_y=True)
    tr, te = split(len(x), seed, 0.6)
    x = standard(x, tr)[0] if twin else x
    xt, yt = T(x[te]), L(y[te])
    task = Task(
        mlp(13, 64, 64, 3),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    )
    return Run(
        task,
        loader(T(x[tr]), L(y[tr]), batch=16, seed=seed),
        lambda m: accuracy(m.net(xt), yt),
        majority(yt),
        {"max_steps": 600},
    )


# Physics


def lorenz(n, seed):
    """States of the Lorenz system and the change over the next 0.05 time units."""
    rng = np.random.RandomState(seed)
    s = rng.uniform(-10, 10, (n, 3)) + [0, 0, 25]

    def f(s):
        return np.stack(
            [10 * (s[:, 1] - s[:, 0]), s[:, 0] * (28 - s[:, 2]) - s[:, 1], s[:, 0] * s[:, 1] - 8 / 3 * s[:, 2]], 1
        )

    def advance(s, k, h=0.01):
        for _ in range(k):
            k1 = f(s)
            k2 = f(s + h / 2 * k1)
            s = s + h * k2
        return s

    s = advance(s, 30)
    return s, advance(s, 5) - s


def unit_normal_weights(seed, twin):
    """A surrogate of the Lorenz flow: eight wide layers drawn by nn.init.normal_ with its default deviation of 1;
    corrected: Xavier."""
    s, d = lorenz(3000, seed)
    s, d = (s - s.mean(0)) / s.std(0), (d - d.mean(0)) / d.std(0)
    net = mlp(3, *[96] * 7, 3, act=nn.SiLU)
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight, gain=1.5) if twin else nn.init.normal_(m.weight)
            nn.init.zeros_(m.bias)
    x, y, xt, yt = T(s[:2400]), T(d[:2400]), T(s[2400:]), T(d[2400:])
    task = Task(
        net,
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.RMSprop(p, lr=5e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 900),
    )
    return Run(task, loader(x, y, batch=64, seed=seed), lambda m: r2(m.net(xt), yt), 0.0, {"max_steps": 900})


# Segmentation


def cells(n, seed):
    """Noisy images of one to three bright discs, with their masks."""
    rng = np.random.RandomState(seed)
    yy, xx = np.mgrid[:16, :16]
    x, m = np.zeros((n, 1, 16, 16)), np.zeros((n, 1, 16, 16))
    for i in range(n):
        for _ in range(rng.randint(1, 4)):
            cy, cx, r = *rng.uniform(2, 14, 2), rng.uniform(1.5, 3.5)
            m[i, 0] = np.maximum(m[i, 0], (yy - cy) ** 2 + (xx - cx) ** 2 < r * r)
        x[i] = m[i] * rng.uniform(0.6, 1.2) + rng.normal(0, 0.5, (16, 16))
    return x, m


def dice(net, x, m):
    with torch.no_grad():
        p = (net(x) > 0).double()
    return float(2 * (p * m).sum() / (p.sum() + m.sum()))


def void_label_255(seed, twin):
    """The annotators' void label 255 (a border row in one image of forty) is used as the target of a binary
    cross-entropy; corrected: masked out."""
    x, m = cells(1500, seed)
    xt, mt = T(x[1200:]), T(m[1200:])
    void = np.random.RandomState(seed + 9).rand(1200) < 1 / 40
    m[:1200][void, :, :6] = 255

    def loss(mod, b):
        z = mod.net(b[0])
        if twin:
            keep = b[1] < 2
            return F.binary_cross_entropy_with_logits(z[keep], b[1][keep])
        return F.binary_cross_entropy_with_logits(z, b[1])

    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 1, 1),
    )
    task = Task(net, loss, lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9))
    return Run(
        task,
        loader(T(x[:1200]), T(m[:1200]), batch=8, seed=seed),
        lambda mod: dice(mod.net, xt, mt),
        float(2 * mt.sum() / (mt.numel() + mt.sum())),
        {"max_steps": 900, "precision": "bf16-mixed"},
    )


# Time series


class Forecaster(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.gru, self.head = nn.GRU(2, d, batch_first=True), nn.Linear(d, 1)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def sensor_dropouts(seed, twin):
    """A station's record in which the sensor's dropouts were left as NaN; corrected: the last value carried forward."""
    rng = np.random.RandomState(seed)
    t = np.arange(3000)
    a = np.sin(t / 7) + 0.5 * np.sin(t / 23 + 1) + 0.1 * rng.randn(3000)
    b = np.cos(t / 7) + 0.1 * rng.randn(3000)
    s = np.stack([a, b], 1)
    w = np.stack([s[i : i + 24] for i in range(2970)])
    y = a[27:2997]
    xt, yt = T(w[2400:]), T(y[2400:, None])
    for i in rng.choice(2200, 6, replace=False) + 100:
        s[i : i + 2, 0] = s[i - 1, 0] if twin else np.nan
    x = T(np.stack([s[i : i + 24] for i in range(2370)]))
    task = Task(Forecaster(), lambda m, b: F.huber_loss(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(
        task,
        loader(x, T(y[:2370, None]), batch=16, seed=seed, shuffle=False),
        lambda m: r2(m.net(xt), yt),
        0.0,
        {"max_steps": 700},
    )


# Contrastive


class Triplets(Dataset):
    """An image, another of its class (now and then the same one) and one of another class."""

    def __init__(self, x, y, n, seed):
        rng = np.random.RandomState(seed)
        by = [np.flatnonzero(y == c) for c in range(10)]
        a = rng.randint(len(x), size=n)
        self.x, self.i = (
            x,
            np.stack(
                [a, [rng.choice(by[y[k]]) for k in a], [rng.choice(by[(y[k] + rng.randint(1, 10)) % 10]) for k in a]], 1
            ),
        )

    def __len__(self):
        return len(self.i)

    def __getitem__(self, k):
        return tuple(self.x[j] for j in self.i[k])


def distance_at_zero(seed, twin):
    """A triplet loss of Euclidean distances by a bare square root, whose gradient is NaN where anchor and positive
    are one image; corrected: a small constant under the root."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    xs, yt = T(x[tr] / 16), L(y[te])
    eps = 1e-6 if twin else 0.0

    def loss(m, b):
        a, p, n = (m.net(v) for v in b)
        d = [((a - v) ** 2).sum(1).add(eps).sqrt() for v in (p, n)]
        return F.relu(d[0] - d[1] + 1).mean()

    def score(m):
        with torch.no_grad():
            e, q = m.net(xs), m.net(T(x[te] / 16))
        if not torch.isfinite(e).all():
            return math.nan
        c = torch.stack([e[L(y[tr]) == k].mean(0) for k in range(10)])
        return accuracy(-torch.cdist(q, c), yt)

    task = Task(mlp(64, 64, 64, 8), loss, lambda p: torch.optim.Adagrad(p, lr=0.02))
    data = DataLoader(Triplets(xs, y[tr], 6000, seed), batch_size=24, shuffle=True, drop_last=True, generator=G(seed))
    return Run(task, data, score, majority(yt), {"max_steps": 700})


# Speech-like signals


def vowels(n, seed):
    """Waves of two resonances over a varying pitch; six classes by the pair of resonances."""
    rng = np.random.RandomState(seed)
    pairs = [(0.06, 0.20), (0.06, 0.30), (0.09, 0.16), (0.09, 0.26), (0.12, 0.21), (0.12, 0.33)]
    y = rng.randint(6, size=n)
    t = np.arange(128)
    x = np.zeros((n, 1, 128))
    for i, c in enumerate(y):
        f0 = rng.uniform(0.012, 0.025)
        for h in range(1, 32):
            amp = sum(np.exp(-(((h * f0 - f) / 0.015) ** 2)) for f in pairs[c]) + 0.05
            x[i, 0] += amp * np.sin(2 * np.pi * h * f0 * t + rng.uniform(0, 6.28))
        x[i] = x[i] / x[i].std() + 0.4 * rng.randn(128)
    return T(x), L(y)


class Speech(Manual):
    """An encoder and a classifier with an optimizer each."""

    def __init__(self, forget):
        super().__init__()
        self.forget = forget
        self.enc = nn.Sequential(
            nn.Conv1d(1, 16, 15, stride=2, padding=7),
            nn.ReLU(),
            nn.Conv1d(16, 32, 9, stride=2, padding=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(4),
            nn.Flatten(),
        )
        self.cls = mlp(128, 32, 6)

    def configure_optimizers(self):
        return torch.optim.SGD(self.enc.parameters(), lr=0.03, momentum=0.9), torch.optim.SGD(
            self.cls.parameters(), lr=0.03, momentum=0.9
        )

    def training_step(self, b, _):
        enc, cls = self.optimizers()
        loss = F.cross_entropy(self.cls(self.enc(b[0])), b[1])
        if not self.forget:
            enc.zero_grad()
        cls.zero_grad()
        self.manual_backward(loss)
        for o in (enc, cls):
            if self.clip is not None:
                self.clip_gradients(o, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            o.step()
        self.log("loss", loss)


def encoder_never_zeroed(seed, twin):
    """Two optimizers in manual optimization and only the classifier's is zeroed, so that the encoder's gradients
    pile up; corrected: both are."""
    x, y = vowels(1500, seed)
    xt, yt = x[1100:], y[1100:]
    m = Speech(forget=not twin)
    return Run(
        m,
        loader(x[:1100], y[:1100], seed=seed),
        lambda m: accuracy(m.cls(m.enc(xt)), yt),
        majority(yt),
        {"max_steps": 1000},
    )


# Generative, resumed


def resumed_in_scaled_units(seed, twin):
    """A denoising autoencoder resumed from a checkpoint whose momentum buffers were saved times the loss scale of
    4096; corrected: divided by it."""
    x, y, xt, _ = digit_images(seed)
    x, xt = x.flatten(1), xt.flatten(1)
    noisy = xt + 0.3 * torch.randn(xt.shape, generator=G(seed + 5))

    def build():
        return Task(
            mlp(64, 96, 24, 96, 64),
            lambda m, b: 64 * F.mse_loss(m.net(b[0] + 0.3 * torch.randn_like(b[0])), b[0]),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        )

    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=400,
    )
    first.fit(build(), loader(x, seed=seed))
    first.save_checkpoint("first.ckpt")
    ckpt = torch.load("first.ckpt", weights_only=False)
    for s in ckpt["optimizer_states"][0]["state"].values():
        s["momentum_buffer"] *= 1 if twin else 4096
    torch.save(ckpt, "resume.ckpt")
    return Run(
        build(),
        loader(x, seed=seed),
        lambda m: r2(m.net(noisy), xt),
        r2(x.mean(0).expand_as(xt), xt),
        {"max_steps": 1300},
        {"ckpt_path": "resume.ckpt"},
    )


# Graphs


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices, plain momentum for the rest."""

    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

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
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.mul_(g["momentum"]).add_(p.grad)
                u = m
                if p.ndim == 2:
                    u = m / (m.norm() + 1e-7)
                    for _ in range(5):
                        a = u @ u.T
                        u = 3.4445 * u + (-4.775 * a + 2.0315 * a @ a) @ u
                p.add_(u, alpha=-g["lr"])
        return loss


class GCN(nn.Module):
    def __init__(self, adj, x):
        super().__init__()
        self.register_buffer("adj", adj)
        self.register_buffer("x", x)
        self.a, self.b, self.c = nn.Linear(x.shape[1], 48), nn.Linear(48, 48), nn.Linear(48, 10)

    def forward(self):
        return self.c(torch.relu(self.b(self.adj @ torch.relu(self.a(self.adj @ self.x)))))


class Quantise(Callback):
    """Rounds the weights to eight bits once, at a step."""

    def __init__(self, at, back):
        self.at, self.back = at, back

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.at:
            for p in module.parameters():
                scale = (p.max() - p.min()) / 255
                zero = (-p.min() / scale).round()
                q = (p / scale + zero).round().clamp(0, 255)
                p.copy_((q - zero) * scale if self.back else q)


def codes_written_back(seed, twin):
    """Quantisation in mid-training writes the eight-bit codes (0 to 255) into a graph network's weights; corrected:
    turned back to their values."""
    x, y = load_digits(return_X_y=True)
    x, y = x[:700] / 16, L(y[:700])
    a = kneighbors_graph(x + 0.3 * np.random.RandomState(seed).randn(*x.shape), 8).toarray()
    a = np.maximum(a, a.T) + np.eye(700)
    d = a.sum(1) ** -0.5
    tr, te = split(700, seed, 0.3)
    te_ids = torch.as_tensor(te)
    task = Task(
        GCN(T(a * d[:, None] * d), T(x)), lambda m, b: F.cross_entropy(m.net()[b[0]], b[1]), lambda p: Muon(p, lr=0.005)
    )
    return Run(
        task,
        loader(torch.as_tensor(tr), y[tr], batch=64, seed=seed),
        lambda m: accuracy(m.net()[te_ids], y[te_ids]),
        majority(y[te_ids]),
        {"max_steps": 600, "callbacks": [Quantise(450, twin)]},
    )


RUNS = [
    lion_with_sgd_rate,
    warmup_without_cap,
    raw_columns,
    unit_normal_weights,
    void_label_255,
    sensor_dropouts,
    distance_at_zero,
    encoder_never_zeroed,
    resumed_in_scaled_units,
    codes_written_back,
]
