"""Twelve runs with one human mistake each; `twin=True` corrects it by hand."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import numpy as np
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import nn

from .common import *  # noqa: F403


@run("sick", "digits CNN, SGD momentum .9, rate 2.0 typed for 0.02")
def s01_rate_typo_cnn(seed, twin=False):
    x, y, xt, yt = digits(seed)
    lr = 0.02 if twin else 2.0
    m = Supervised(small_cnn(), F.cross_entropy, lambda m: torch.optim.SGD(m.parameters(), lr, momentum=0.9))
    return Built(m, loader(x, y, batch=64, seed=seed), {"max_steps": 800}, accuracy_score(xt, yt), majority(yt))


@run("sick", "house prices, SGD, inputs raw (sq ft, metres, year)")
def s02_raw_inputs_houses(seed, twin=False):
    x, price = houses(seed)
    tr, te = split(len(x), seed)
    if twin:
        x = (x - x[tr].mean(0)) / x[tr].std(0)
    y = price / 100_000
    x, y = f32(x), f32(y)[:, None]
    m = Supervised(mlp(5, 64, 64, 1), F.mse_loss, lambda m: torch.optim.SGD(m.parameters(), 0.02))
    return Built(m, loader(x[tr], y[tr], batch=64, seed=seed), {"max_steps": 800}, r2_score(x[te], y[te]), 0.0)


class ManualModule(pl.LightningModule):
    clip = None  # the runner sets it for the contender clip: Lightning clips nothing by itself here

    def __init__(self, net, lr, zero):
        super().__init__()
        self.automatic_optimization = False
        self.net, self.lr, self.zero = net, lr, zero

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        x, y = batch
        loss = F.mse_loss(self(x), y)
        if self.zero:
            opt.zero_grad()
        self.manual_backward(loss)
        if self.clip:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


@run("sick", "Friedman regression, manual optimization without zero_grad")
def s03_no_zero_grad(seed, twin=False):
    x, y = sklearn.datasets.make_friedman1(1600, noise=0.5, random_state=seed)
    tr, te = split(len(x), seed)
    y = (y - y[tr].mean()) / y[tr].std()
    x, y = f32(x), f32(y)[:, None]
    m = ManualModule(mlp(10, 64, 64, 1), 0.05, zero=twin)
    return Built(m, loader(x[tr], y[tr], batch=32, seed=seed), {"max_steps": 800}, r2_score(x[te], y[te]), 0.0)


class CharRNN(pl.LightningModule):
    def __init__(self, cell, vocab, width, optim):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(vocab, 24), cell, nn.Linear(width, vocab)
        self._optim = optim

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])

    def training_step(self, batch, batch_idx):
        (c,) = batch
        loss = F.cross_entropy(self(c[:, :-1]).flatten(0, 1), c[:, 1:].flatten())
        self.log("nll", loss)
        return loss

    def configure_optimizers(self):
        return self._optim(self)


def char_data(length, stride, limit=60_000):
    text = "".join(descr_texts())[:limit]
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(c) for c in text])
    windows = ids.unfold(0, length + 1, stride)
    k = int(len(windows) * 0.85)
    return windows[:k].contiguous(), windows[k + 2 :].contiguous(), len(chars)


def char_score(test):
    target = test[:, 1:]

    @evaluating
    def score(m):
        out = m(test[:, :-1])
        return (out.argmax(-1) == target).float().mean().item() if torch.isfinite(out).all() else math.nan

    return score, majority(target.flatten())


@run("sick", "char ReLU-RNN on real text, Adam; recurrent matrix drawn 2.5 times too large")
def s04_rnn_recurrent_init(seed, twin=False):
    train, test, vocab = char_data(40, 13)
    rnn = nn.RNN(24, 96, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        if twin:
            rnn.weight_hh_l0.copy_(torch.eye(96))
        else:
            rnn.weight_hh_l0.normal_(0, 2.5 / math.sqrt(96))
    m = CharRNN(rnn, vocab, 96, lambda m: torch.optim.Adam(m.parameters(), 1e-3))
    score, trivial = char_score(test)
    return Built(m, loader(train, batch=32, seed=seed), {"max_steps": 700}, score, trivial)


class Forecaster(nn.Module):
    def __init__(self, inp=1, width=32):
        super().__init__()
        self.gru, self.head = nn.GRU(inp, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def sensor(seed, n=5000):
    rng = np.random.RandomState(40 + seed)
    t = np.arange(n)
    s = np.sin(2 * np.pi * t / 24) + 0.6 * np.sin(2 * np.pi * t / 37 + 1)
    ar = np.zeros(n)
    for i in range(1, n):
        ar[i] = 0.8 * ar[i - 1] + 0.15 * rng.randn()
    return s + ar


@run("sick", "GRU forecast, Adam; missing values coded as -9999 in 1 window of 500")
def s05_sentinel_gru(seed, twin=False):
    s = sensor(seed)
    w = np.lib.stride_tricks.sliding_window_view(s, 31)
    cut = int(len(w) * 0.8)
    x, y, xt, yt = w[:cut, :30].copy(), w[:cut, 30:].copy(), w[cut + 31 :, :30], w[cut + 31 :, 30:]
    if not twin:
        bad = np.random.RandomState(seed).choice(cut, max(1, cut // 500), replace=False)
        y[bad] = -9999
        x[bad, -3:] = -9999
    m = Supervised(Forecaster(), F.mse_loss, lambda m: torch.optim.Adam(m.parameters(), 3e-3), log=False)
    xt, yt = f32(xt)[..., None], f32(yt)
    return Built(m, loader(f32(x)[..., None], f32(y), batch=64, seed=seed), {"max_steps": 500}, r2_score(xt, yt), 0.0)


@run("sick", "digits autoencoder, SGD momentum, MSE with reduction='sum'")
def s06_sum_reduction_ae(seed, twin=False):
    x, _, xt, _ = digits(seed)
    red = "mean" if twin else "sum"
    net = mlp(64, 128, 24, 128, 64)
    m = Supervised(
        net, lambda a, b: F.mse_loss(a, b, reduction=red), lambda m: torch.optim.SGD(m.parameters(), 0.5, momentum=0.9)
    )
    return Built(m, loader(x, x, batch=64, seed=seed), {"max_steps": 800}, r2_score(xt, xt), 0.0)


class Reverser(nn.Module):
    def __init__(self, vocab=12, length=10, d=48):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Parameter(torch.randn(length, d) * 0.3)
        layer = nn.TransformerEncoderLayer(d, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(d, vocab)

    def forward(self, x):
        return self.out(self.enc(self.emb(x) + self.pos))


@run("sick", "transformer reverses sequences, AdamW; MultiStepLR gamma=30 typed for 0.3")
def s07_schedule_jump_transformer(seed, twin=False):
    g = gen(seed + 3)
    x = torch.randint(0, 12, (4000, 10), generator=g)
    y = x.flip(1)

    def optim(m):
        o = torch.optim.AdamW(m.parameters(), 2e-3)
        s = torch.optim.lr_scheduler.MultiStepLR(o, [300, 450], gamma=0.3 if twin else 30)
        return {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}

    m = Supervised(Reverser(), lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), optim)
    return Built(
        m,
        loader(x[:3500], y[:3500], batch=64, seed=seed),
        {"max_steps": 600},
        accuracy_score(x[3500:], y[3500:]),
        majority(y[3500:].flatten()),
    )


@run("sick", "digits 0..255, He init, Adam, softmax written by hand (exp overflows, log 0)")
def s08_hand_softmax(seed, twin=False):
    x, y, xt, yt = digits(seed, scale=255 / 16)

    def hand(out, t):
        p = out.exp() / out.exp().sum(1, keepdim=True)
        return -p[torch.arange(len(t)), t].log().mean()

    net = mlp(64, 128, 64, 10)
    for p in net.parameters():
        if p.ndim == 2:
            nn.init.kaiming_normal_(p)
    m = Supervised(net, F.cross_entropy if twin else hand, lambda m: torch.optim.Adam(m.parameters(), 1e-3))
    return Built(m, loader(x, y, batch=64, seed=seed), {"max_steps": 800}, accuracy_score(xt, yt), majority(yt))


class Bandit(pl.LightningModule):
    def __init__(self, scaled, lr):
        super().__init__()
        self.net, self.scaled, self.lr = mlp(64, 64, 10), scaled, lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        dist = torch.distributions.Categorical(logits=self(x), validate_args=False)
        with torch.no_grad():
            p = dist.probs if torch.isfinite(dist.probs).all() else torch.full_like(dist.probs, 0.1)
            a = torch.multinomial(p, 1)[:, 0]
        reward = torch.where(a == y, 1000.0, -100.0)  # money
        adv = (reward - reward.mean()) / 500 if self.scaled else reward
        self.log("reward", reward.mean())
        return -(adv * dist.log_prob(a)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


@run("sick", "REINFORCE bandit on digits, SGD momentum; rewards in money, no baseline, no scaling")
def s09_raw_rewards(seed, twin=False):
    x, y, xt, yt = digits(seed)
    return Built(
        Bandit(twin, 0.05), loader(x, y, batch=128, seed=seed), {"max_steps": 800}, accuracy_score(xt, yt), majority(yt)
    )


@run("sick", "graph net, SGD momentum, 4 layers that sum over neighbours unnormalised")
def s10_sum_aggregation(seed, twin=False):
    a, x, y = graphs(seed)
    m = GraphModule(GraphNet(twin), lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9))
    return Built(
        m,
        loader(a[:180], x[:180], y[:180], batch=12, seed=seed),
        {"max_steps": 600},
        graph_score(a[180:], x[180:], y[180:]),
        majority(y[180:].flatten()),
    )


class TextCNN(nn.Module):
    def __init__(self, vocab, classes, d=24, width=48):
        super().__init__()
        self.emb, self.conv, self.norm = nn.Embedding(vocab, d), nn.Conv1d(d, width, 5), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        h = torch.relu(self.conv(self.emb(x).transpose(1, 2))).amax(-1)
        return self.fc2(torch.relu(self.fc1(self.norm(h))))


@run("sick", "which document is this chunk from, text CNN, Lion with rate 0.1 (Lion wants 1e-3)")
def s11_lion_rate(seed, twin=False):
    texts = sorted(descr_texts(), key=len)[-6:]
    chars = sorted(set("".join(texts)))
    X, Y, XT, YT = [], [], [], []
    for k, t in enumerate(texts):
        t = t[:6000]
        w = torch.tensor([chars.index(c) for c in t]).unfold(0, 80, 8)
        cut = int(len(w) * 0.8)
        X.append(w[:cut]), XT.append(w[cut + 10 :])
        Y.append(torch.full((cut,), k)), YT.append(torch.full((len(w) - cut - 10,), k))
    x, y, xt, yt = map(torch.cat, (X, Y, XT, YT))
    lr = 1e-3 if twin else 0.1
    m = Supervised(TextCNN(len(chars), 6), F.cross_entropy, lambda m: Lion(m.parameters(), lr))
    return Built(m, loader(x, y, batch=32, seed=seed), {"max_steps": 500}, accuracy_score(xt, yt), majority(yt))


@run("sick", "fine-tune a pretrained digits net, SGD; new head by nn.init.normal_ (std 1 instead of .01)")
def s12_finetune_head_init(seed, twin=False):
    x, y, xt, yt = digits(seed)
    low = y < 5
    body = mlp(64, 192, 192, 64)
    net = nn.Sequential(body, nn.ReLU(), nn.Linear(64, 5))
    pretrain(net, x[low], y[low], 300, seed=seed)
    net[2] = nn.Linear(64, 10)
    nn.init.normal_(net[2].weight, std=0.01 if twin else 1.0)
    m = Supervised(net, F.cross_entropy, lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9))
    return Built(m, loader(x, y, batch=32, seed=seed), {"max_steps": 600}, accuracy_score(xt, yt), majority(yt))
