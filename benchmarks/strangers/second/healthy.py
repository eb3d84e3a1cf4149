"""Twelve healthy runs that may look alarming."""

import os

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn import datasets
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from common import (
    CharRNN,
    Plain,
    Run,
    T,
    acc,
    char_data,
    cnn,
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
from sick import poisson

SGD = torch.optim.SGD


def cosine_restarts(seed):
    """CNN on digits, SGD momentum at a lively rate, cosine schedule with warm restarts."""
    x, y = digits()
    x = x.reshape(-1, 8, 8)
    tr, te = split(len(y), seed)
    mod = Plain(
        cnn(),
        F.cross_entropy,
        lambda p: SGD(p, 0.15, momentum=0.9, weight_decay=1e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 60, 2),
    )
    return Run(
        mod,
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda g: acc(predict(g, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 420},
    )


def saddle_start(seed):
    """Iris, MLP with weights N(0, 0.03): a long plateau at the saddle, then a steep fall. Nesterov."""
    x, y = datasets.load_iris(return_X_y=True)
    tr, te = split(len(y), seed, 0.67)
    x, y = T((x - x[tr].mean(0)) / x[tr].std(0)), T(y, torch.long)
    net = mlp(4, 32, 32, 3)
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.03)
            nn.init.zeros_(m.bias)
    mod = Plain(net, F.cross_entropy, lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True))
    return Run(
        mod,
        loader(x[tr], y[tr], batch=20, seed=seed),
        lambda g: acc(predict(g, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 600},
    )


def diabetes_raw_adam(seed):
    """Diabetes with the raw target, Adam at 0.01: losses of 29000 at first, and that is fine."""
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    tr, te = split(len(y), seed)
    x, y = T((x - x[tr].mean(0)) / x[tr].std(0)), T(y)
    mod = Plain(mlp(10, 32, 1), lambda p, t: F.mse_loss(p[:, 0], t), lambda p: torch.optim.Adam(p, 0.02))
    return Run(
        mod, loader(x[tr], y[tr], batch=32, seed=seed), lambda g: r2(predict(g, x[te]), y[te]), 0.0, {"max_steps": 300}
    )


def lstm_adagrad(seed):
    """Character LSTM, Adagrad at 0.05, two batches accumulated for each step."""
    tr, te, v = char_data(seed)
    mod = Plain(CharRNN(nn.LSTM, v), seq_ce, lambda p: torch.optim.Adagrad(p, 0.05))
    return Run(
        mod,
        loader(tr[:, :-1], tr[:, 1:], batch=16, seed=seed),
        lambda g: -float(seq_ce(predict(g, te[:, :-1]), te[:, 1:])),
        unigram(tr, te, v),
        {"max_steps": 200, "accumulate_grad_batches": 2},
    )


class Reinforce(LightningModule):
    """A point on a line must be steered to 0; the return is a raw sum of rewards, no baseline but the batch's mean."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 32, 3, act=nn.Tanh)

    def roll(self, s, greedy=False):
        logp, total = 0, 0
        for _ in range(20):
            logits = self.net(s)
            d = torch.distributions.Categorical(logits=logits, validate_args=False)
            a = logits.argmax(1) if greedy else d.sample()
            logp = logp + d.log_prob(a)
            v = s[:, 1] * 0.9 + 0.2 * (a - 1)
            s = torch.stack([s[:, 0] + v, v], 1)
            total = total - s[:, 0] ** 2 + 50 * ((s[:, 0].abs() < 0.05) & (v.abs() < 0.05))
        return logp, total

    def training_step(self, batch, _):
        logp, ret = self.roll(batch[0])
        return -(logp * (ret - ret.mean())).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def reinforce(seed):
    """REINFORCE with rare large rewards, Adam; the loss is noise around zero and gradients are heavy-tailed."""
    g = torch.Generator().manual_seed(seed)
    s, z = torch.randn(4800, 2, generator=g), torch.randn(500, 2, generator=g)
    s[:, 1] *= 0.1
    z[:, 1] *= 0.1
    mod = Reinforce()

    def score(m):
        with torch.no_grad():
            return float(m.roll(z, True)[1].mean())

    class Idle(nn.Module):
        def forward(self, s):
            return torch.zeros(len(s), 3)

    idle = Reinforce()
    idle.net = Idle()
    torch.manual_seed(seed)
    return Run(mod, loader(s, batch=32, seed=seed), score, float(idle.roll(z)[1].mean()), {"max_steps": 300})


class MF(nn.Module):
    def __init__(self, u, i, d=8):
        super().__init__()
        self.u, self.i, self.bu, self.bi = (
            nn.Embedding(u, d),
            nn.Embedding(i, d),
            nn.Embedding(u, 1),
            nn.Embedding(i, 1),
        )
        for e in (self.u, self.i):
            nn.init.normal_(e.weight, std=0.2)
        for e in (self.bu, self.bi):
            nn.init.zeros_(e.weight)

    def forward(self, ids):
        u, i = ids[:, 0], ids[:, 1]
        return (self.u(u) * self.i(i)).sum(1) + self.bu(u)[:, 0] + self.bi(i)[:, 0]


def factorisation_rate_6(seed):
    """Matrix factorisation of popular and rare items by plain SGD at a rate of 6, right since each row is rarely
    met."""
    r = np.random.RandomState(seed)
    n, nu, ni = 20000, 300, 200
    pop = 1 / np.arange(1, ni + 1) ** 0.7
    ids = np.c_[r.randint(nu, size=n), r.choice(ni, n, p=pop / pop.sum())]
    a, b = r.randn(nu, 2), r.randn(ni, 2)
    y = 0.7 * r.randn(nu)[ids[:, 0]] + 0.7 * r.randn(ni)[ids[:, 1]] + 0.5 * (a[ids[:, 0]] * b[ids[:, 1]]).sum(1)
    y = y + 0.2 * r.randn(n)
    tr, te = split(n, seed, 0.85)
    ids, y = T(ids, torch.long), T(y)
    mod = Plain(MF(nu, ni), F.mse_loss, lambda p: SGD(p, 6.0))
    return Run(
        mod,
        loader(ids[tr], y[tr], batch=256, seed=seed),
        lambda g: r2(predict(g, ids[te]), y[te]),
        0.0,
        {"max_steps": 500},
    )


def pinn_stiff(seed):
    """Poisson's equation with the boundary weighted 1000-fold, NAdam at 0.01."""
    return poisson(seed, 0.01, torch.optim.NAdam, bc=1000.0, steps=500)


def triplets(seed):
    """Metric learning on digits, hard triplet hinge with small batches; many gradients are nearly zero. RMSprop."""
    x, y = digits()
    tr, te = split(len(y), seed)

    def loss(e, t):
        d = torch.cdist(e, e) + 0
        same = t[:, None] == t[None]
        pos = (d * same).max(1).values
        neg = d.masked_fill(same, 1e4).min(1).values
        return F.relu(pos - neg + 0.3).mean()

    def score(m):
        e, c = predict(m, x[te]), predict(m, x[tr])
        if not (torch.isfinite(e).all() and torch.isfinite(c).all()):
            return float("nan")
        return float((y[tr][torch.cdist(e, c).argmin(1)] == y[te]).double().mean())

    mod = Plain(mlp(64, 64, 16), loss, lambda p: torch.optim.RMSprop(p, 1e-3))
    return Run(mod, loader(x[tr], y[tr], batch=12, seed=seed), score, majority(y[te]), {"max_steps": 500})


def rare_positives(seed):
    """Breast cancer with one positive in thirty, weighted 30-fold: a batch with one has a far larger gradient.
    AdamW."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    tr, te = split(len(y), seed, 0.6)
    x, y = T((x - x[tr].mean(0)) / x[tr].std(0)), T(1 - y)
    pos, neg = tr[y[tr].numpy() == 1][:8], tr[y[tr].numpy() == 0]
    tr = np.r_[pos, neg]
    mod = Plain(
        mlp(30, 32, 1),
        lambda p, t: F.binary_cross_entropy_with_logits(p[:, 0], t, pos_weight=torch.tensor(30.0)),
        lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=0.1),
    )

    def score(m):
        p = predict(m, x[te])[:, 0] > 0
        t = y[te] > 0
        return float((p[t].double().mean() + (~p[~t]).double().mean()) / 2)

    return Run(mod, loader(x[tr], y[tr], batch=12, seed=seed), score, 0.5, {"max_steps": 400})


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(1, 32)
        self.pos = nn.Parameter(torch.randn(24, 32) * 0.1)
        self.enc = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.enc(self.inp(x[:, :, None]) + self.pos).mean(1))


def transformer_resumed(seed):
    """Transformer with dropout tells waves by their frequency, AdamW and warm-up; resumed from a checkpoint at step
    120."""
    g = torch.Generator().manual_seed(seed)
    n = 2400
    y = torch.randint(3, (n,), generator=g)
    t = torch.arange(24) / 24
    f = torch.tensor([1.5, 2.5, 3.5])[y][:, None] + 0.1 * torch.randn(n, 1, generator=g)
    x = torch.sin(6.28 * (f * t + torch.rand(n, 1, generator=g))) + 0.3 * torch.randn(n, 24, generator=g)

    def make():
        return Plain(
            Attention(),
            F.cross_entropy,
            lambda p: torch.optim.AdamW(p, 4e-3, weight_decay=0.05),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1, (s + 1) / 60)),
        )

    def data():
        return loader(x[:1800], y[:1800], batch=32, seed=seed)

    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=120,
    )
    first.fit(make(), data())
    path = os.path.abspath("first.ckpt")
    first.save_checkpoint(path)
    return Run(
        make(),
        data(),
        lambda m: acc(predict(m, x[1800:]), y[1800:]),
        majority(y[1800:]),
        {"max_steps": 360},
        {"ckpt_path": path},
    )


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.rnn(x[:, :, None])[0])[:, :, 0]


def length_curriculum(seed):
    """Running sums by a GRU, Adam, loss summed over the sequence; the length goes from 5 to 40 on purpose (regime)."""
    r = np.random.RandomState(seed)
    batches = []
    for i in range(300):
        x = r.randn(32, 5 if i < 120 else 15 if i < 210 else 40)
        batches.append((T(x), T(np.tanh(np.cumsum(x, 1) / 2) * 3)))
    z = r.randn(300, 40)
    zy = T(np.tanh(np.cumsum(z, 1) / 2) * 3)
    mod = Plain(Adder(), lambda p, t: ((p - t) ** 2).sum(1).mean(), lambda p: torch.optim.Adam(p, 1e-2))
    return Run(
        mod,
        DataLoader(batches, batch_size=None, shuffle=False),
        lambda m: r2(predict(m, T(z)), zy),
        0.0,
        {"max_steps": 300},
    )


class Unfreeze(Callback):
    def on_train_batch_start(self, trainer, m, batch, i):
        if trainer.global_step == 120:
            for p in m.net.parameters():
                p.requires_grad_(True)


def gradual_unfreezing(seed):
    """CNN pretrained on digits 0-4; its body is frozen for 120 steps, then trained too. SGD momentum."""
    x, y = digits()
    x = x.reshape(-1, 8, 8)
    tr, te = split(len(y), seed)
    net = pretrained_cnn(seed)
    for p in net[:-1].parameters():
        p.requires_grad_(False)
    mod = Plain(net, F.cross_entropy, lambda p: SGD(p, 0.03, momentum=0.9, weight_decay=1e-4))
    return Run(
        mod,
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda g: acc(predict(g, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 300, "callbacks": [Unfreeze()]},
    )


RUNS = [
    cosine_restarts,
    saddle_start,
    diabetes_raw_adam,
    lstm_adagrad,
    reinforce,
    factorisation_rate_6,
    pinn_stiff,
    triplets,
    rare_positives,
    transformer_resumed,
    length_curriculum,
    gradual_unfreezing,
]
REGIME = {"length_curriculum"}
