"""Twelve runs that end well unguarded, though some look alarming."""

from __future__ import annotations

import math
import os

import lightning.pytorch as pl
import numpy as np
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import nn

from .common import *  # noqa: F403
from .sick import CharRNN, char_data, char_score, sensor


@run("healthy", "diabetes in raw units, BatchNorm first, MSE of raw targets (loss 29000), Adam .03")
def h01_diabetes_raw(seed, twin=False):
    x, y = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    tr, te = split(len(x), seed)
    x, y = f32(x), f32(y)[:, None]
    net = nn.Sequential(nn.BatchNorm1d(10), mlp(10, 32, 1))
    m = Supervised(net, F.mse_loss, lambda m: torch.optim.Adam(m.parameters(), 0.03))
    return Built(m, loader(x[tr], y[tr], batch=32, seed=seed), {"max_steps": 600}, r2_score(x[te], y[te]), 0.0)


@run("healthy", "digits CNN, SGD nesterov, OneCycle up to a high but right rate 0.3")
def h02_onecycle_cnn(seed, twin=False):
    x, y, xt, yt = digits(seed)

    def optim(m):
        o = torch.optim.SGD(m.parameters(), 0.3, momentum=0.9, nesterov=True)
        s = torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=700)
        return {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}

    m = Supervised(small_cnn(), F.cross_entropy, optim)
    return Built(m, loader(x, y, batch=64, seed=seed), {"max_steps": 700}, accuracy_score(xt, yt), majority(yt))


@run("healthy", "digits MLP resumed from a Lightning checkpoint of an unguarded run, AdamW, StepLR")
def h03_resumed(seed, twin=False):
    x, y, xt, yt = digits(seed)

    def optim(m):
        o = torch.optim.AdamW(m.parameters(), 2e-3)
        return [o], [torch.optim.lr_scheduler.StepLR(o, 10, 0.5)]

    def make():
        return Supervised(mlp(64, 128, 128, 10), F.cross_entropy, optim)

    first = pl.Trainer(
        max_epochs=12,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    first.fit(make(), loader(x, y, batch=64, seed=seed))
    path = os.path.abspath("first.ckpt")
    first.save_checkpoint(path)
    return Built(
        make(),
        loader(x, y, batch=64, seed=seed + 1),
        {"max_epochs": 40},
        accuracy_score(xt, yt),
        majority(yt),
        {"ckpt_path": path},
    )


class FineTune(Supervised):
    def on_train_epoch_start(self):
        if self.current_epoch == 3:
            for p in self.net[0].parameters():
                p.requires_grad_(True)


@run("healthy", "pretrained body, new head, body frozen for 3 epochs, then thawed; Lion with weight decay")
def h04_finetune_thaw(seed, twin=False):
    x, y, xt, yt = digits(seed)
    low = y < 5
    net = nn.Sequential(mlp(64, 192, 192, 64), nn.ReLU(), nn.Linear(64, 5))
    pretrain(net, x[low], y[low], 300, seed=seed)
    net[2] = nn.Linear(64, 10)
    for p in net[0].parameters():
        p.requires_grad_(False)
    m = FineTune(net, F.cross_entropy, lambda m: Lion(m.parameters(), 5e-4, weight_decay=0.1))
    return Built(m, loader(x, y, batch=32, seed=seed), {"max_epochs": 15}, accuracy_score(xt, yt), majority(yt))


@run("healthy", "char GRU on real text, Adam, warm-up and cosine with warm restarts (rate cycles by 100)")
def h05_gru_restarts(seed, twin=False):
    train, test, vocab = char_data(40, 13)

    def optim(m):
        o = torch.optim.Adam(m.parameters(), 1e-2)

        def f(k):
            return (k + 1) / 40 if k < 40 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * ((k - 40) % 120) / 120))

        return {
            "optimizer": o,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(o, f), "interval": "step"},
        }

    m = CharRNN(nn.GRU(24, 80, batch_first=True), vocab, 80, optim)
    score, trivial = char_score(test)
    return Built(m, loader(train, batch=32, seed=seed), {"max_steps": 400}, score, trivial)


@run("healthy", "regression with Student-t(2.1) noise under MSE (some losses 1000 times others), Adagrad")
def h06_heavy_tails(seed, twin=False):
    rng = np.random.RandomState(60 + seed)
    x = rng.randn(6000, 8)
    f = 2 * x[:, 0] + np.sin(2 * x[:, 1]) * 2 + x[:, 2] * x[:, 3] + np.abs(x[:, 4])
    f = (f - f.mean()) / f.std()
    y = f + 0.4 * rng.standard_t(2.1, 6000)
    tr, te = split(6000, seed)
    x = f32(x)
    m = Supervised(mlp(8, 64, 64, 1), F.mse_loss, lambda m: torch.optim.Adagrad(m.parameters(), 0.02))
    return Built(
        m,
        loader(x[tr], f32(y)[tr][:, None], batch=32, seed=seed),
        {"max_steps": 800},
        r2_score(x[te], f32(f)[te][:, None]),
        0.0,
    )


class Corridor(pl.LightningModule):
    """Reward only at the end of a corridor; one of 3 actions goes on, which one depends on the cell."""

    def __init__(self, cells=4, actions=3, episodes=16):
        super().__init__()
        self.net, self.cells, self.actions, self.episodes = mlp(cells, 32, actions), cells, actions, episodes
        self.register_buffer("right", torch.arange(cells) * 7 % actions)
        self.baseline = 0.0

    def rollout(self, n, g):
        pos, alive, logp = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), 0.0
        for _ in range(self.cells):
            logits = self.net(F.one_hot(pos.clamp(max=self.cells - 1), self.cells).float())
            lp = logits.log_softmax(-1)
            a = torch.multinomial(lp.detach().exp(), 1, generator=g)[:, 0]
            logp = logp + lp.gather(1, a[:, None])[:, 0] * alive
            alive = alive & (a == self.right[pos.clamp(max=self.cells - 1)])
            pos = pos + alive.long()
        return logp, (pos == self.cells).float()

    def training_step(self, batch, batch_idx):
        g = gen(int(batch[0][0]))
        logp, reward = self.rollout(self.episodes, g)
        loss = -((reward - self.baseline) * logp).mean()
        self.log("reward", reward.mean())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 5e-3)


@run("healthy", "REINFORCE in a corridor, sparse reward (1 of 81 at the start, most gradients exactly zero), Adam")
def h07_sparse_reward(seed, twin=False):
    seeds = torch.arange(2000) + 10_000 * seed

    @evaluating
    def score(m):
        return m.rollout(2000, gen(5))[1].mean().item()

    return Built(Corridor(), loader(seeds, batch=1, seed=seed), {"max_steps": 800}, score, 1 / 81)


class RingGAN(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.G, self.D = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1)

    def training_step(self, batch, batch_idx):
        og, od = self.optimizers()
        (real,) = batch
        fake = self.G(torch.randn(len(real), 8))
        ld = F.softplus(-self.D(real)).mean() + F.softplus(self.D(fake.detach())).mean()
        od.zero_grad()
        self.manual_backward(ld)
        od.step()
        lg = F.softplus(-self.D(fake)).mean()
        og.zero_grad()
        self.manual_backward(lg)
        og.step()
        self.log_dict({"d": ld, "g": lg})

    def configure_optimizers(self):
        return torch.optim.Adam(self.G.parameters(), 1e-3, (0.5, 0.9)), torch.optim.Adam(
            self.D.parameters(), 2e-3, (0.5, 0.9)
        )


@run("healthy", "GAN on a ring, two Adams, manual optimization")
def h08_gan_ring(seed, twin=False):
    angle = torch.rand(4000, generator=gen(seed + 8)) * 2 * math.pi
    pts = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(4000, 2, generator=gen(seed + 9))

    @evaluating
    def score(m):  # share near the ring times share of 16 sectors that are visited
        s = m.G(torch.randn(2000, 8, generator=gen(1)))
        if not torch.isfinite(s).all():
            return math.nan
        near = ((s.norm(dim=1) - 1).abs() < 0.25).float().mean().item()
        sector = ((torch.atan2(s[:, 1], s[:, 0]) + math.pi) / (2 * math.pi) * 16).long().clamp(max=15)
        return near * (torch.bincount(sector, minlength=16) > 20).float().mean().item()

    return Built(RingGAN(), loader(pts, batch=128, seed=seed), {"max_steps": 1600}, score, 0.2)


class VAE(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = mlp(64, 128, 24), mlp(12, 128, 64)

    def forward(self, x):
        return self.dec(self.enc(x)[:, :12])

    def training_step(self, batch, batch_idx):
        (x,) = batch
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        rec = F.mse_loss(self.dec(z), x, reduction="sum") / len(x)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        beta = min(0.25, max(0, self.global_step - 150) / 1200)
        loss = rec + beta * kl
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 2e-3, weight_decay=0.01)


@run("healthy", "VAE on digits, KL weight warmed up from step 150: the loss falls, then grows; AdamW")
def h09_vae_kl_warmup(seed, twin=False):
    x, _, xt, _ = digits(seed)
    return Built(VAE(), loader(x, batch=64, seed=seed), {"max_steps": 700}, r2_score(xt, xt), 0.0)


class Probabilistic(pl.LightningModule):
    """MSE of the mean for 6 epochs, then the Gaussian NLL, which becomes negative while gradients grow."""

    def __init__(self):
        super().__init__()
        self.net = mlp(24, 64, 64, 2)

    def forward(self, x):
        return self.net(x)[:, :1]

    def training_step(self, batch, batch_idx):
        x, y = batch
        mean, raw = self.net(x).chunk(2, 1)
        if self.current_epoch < 6:
            return F.mse_loss(mean, y)
        return F.gaussian_nll_loss(mean, y, F.softplus(raw) ** 2 + 1e-4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


@run("healthy", "forecast MLP: MSE for 6 epochs, then Gaussian NLL (negative, gradients grow); Adam", regime=True)
def h10_mse_then_nll(seed, twin=False):
    s = sensor(seed) * 0.5
    w = np.lib.stride_tricks.sliding_window_view(s, 25)
    cut = int(len(w) * 0.8)
    x, y, xt, yt = f32(w[:cut, :24]), f32(w[:cut, 24:]), f32(w[cut + 25 :, :24]), f32(w[cut + 25 :, 24:])
    return Built(Probabilistic(), loader(x, y, batch=64, seed=seed), {"max_epochs": 13}, r2_score(xt, yt), 0.0)


@run("healthy", "graph net, 40% of the labels wrong, 2 graphs a batch, accumulate 4, RMSprop")
def h11_graph_label_noise(seed, twin=False):
    a, x, y = graphs(seed)
    g = gen(seed)
    noisy = torch.where(torch.rand(y.shape, generator=g) < 0.4, torch.randint(0, 3, y.shape, generator=g), y)
    m = GraphModule(GraphNet(True), lambda m: torch.optim.RMSprop(m.parameters(), 1e-3))
    return Built(
        m,
        loader(a[:180], x[:180], noisy[:180], batch=2, seed=seed),
        {"max_steps": 300, "accumulate_grad_batches": 4},
        graph_score(a[180:], x[180:], y[180:]),
        majority(y[180:].flatten()),
    )


@run("healthy", "parity of 3 of 12 bits: a long plateau, then a breakthrough with large gradients; SGD momentum")
def h12_parity_plateau(seed, twin=False):
    g = gen(seed + 12)
    x = torch.randint(0, 2, (6000, 12), generator=g).float() * 2 - 1
    y = ((x[:, 1] * x[:, 4] * x[:, 9]) > 0).long()
    m = Supervised(mlp(12, 128, 2), F.cross_entropy, lambda m: torch.optim.SGD(m.parameters(), 0.2, momentum=0.9))
    return Built(
        m,
        loader(x[:5000], y[:5000], batch=64, seed=seed),
        {"max_steps": 800},
        accuracy_score(x[5000:], y[5000:]),
        majority(y[5000:]),
    )
