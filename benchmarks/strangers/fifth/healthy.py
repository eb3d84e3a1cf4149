"""Ten healthy runs: unusual, perhaps, but right. REGIME: those that openly change loss, data or trainable parts in
mid-run."""

import os
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from sklearn import datasets
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR


@torch.no_grad()
def out(m, x):
    m.eval()
    return m.net(x)


def ce(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


def mse(m, b):
    return F.mse_loss(m.net(b[0]), b[1])


def digits():
    d = datasets.load_digits()
    return T(d.images / 16.0)[:, None], L(d.target)


def conv(bn=True):
    n = nn.BatchNorm2d if bn else (lambda c: nn.Identity())
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        n(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        n(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def cyclic_conv(seed):
    """Triangular cycles from 1e-3 to 0.4 with SGD and batch normalisation."""
    x, y = digits()
    tr, te = split(len(y), seed)
    m = Task(
        conv(),
        ce,
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        lambda o: CyclicLR(o, 1e-3, 0.4, step_size_up=50, cycle_momentum=False, mode="triangular2"),
    )
    return Run(
        m,
        loader(x[tr], y[tr], seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 600},
    )


def raw_progress(seed):
    """Disease progression in its raw units (25 to 346), Adam 1e-2: a steep fall from 30,000."""
    d = datasets.load_diabetes()
    tr, te = split(len(d.target), seed)
    x = T(standard(d.data, tr)[0])
    y = T(d.target)[:, None]
    m = Task(mlp(10, 32, 32, 1), mse, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1))
    return Run(
        m, loader(x[tr], y[tr], batch=16, seed=seed), lambda m: r2(out(m, x[te]), y[te]), 0.0, {"max_steps": 400}
    )


def claims(seed):
    """Insurance claims: rare, log-normal with deviation 2, log link, Poisson-like deviance of raw amounts; rare
    batches a thousand times the others."""
    r = np.random.RandomState(seed)
    x = r.randn(6000, 6)
    mu = np.exp(1 + x @ np.array([0.8, -0.6, 0.4, 0.0, 0.3, -0.2]))
    y = mu * (r.rand(6000) < 0.2) / 0.2 * np.exp(1.8 * r.randn(6000) - 1.62)
    tr, te = split(6000, seed)
    x, y, lm = T(x), T(y)[:, None], T(np.log(mu))[:, None]
    m = Task(
        mlp(6, 32, 1, act=nn.Tanh),
        lambda m, b: (lambda e: (e.exp() - b[1] * e).mean())(m.net(b[0])),
        lambda p: torch.optim.Adam(p, lr=2e-3),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=64, seed=seed), lambda m: r2(out(m, x[te]), lm[te]), 0.0, {"max_steps": 800}
    )


class Unfreeze(Callback):
    def on_train_batch_start(self, trainer, m, batch, i):
        if trainer.global_step == 200:
            for p in m.net.parameters():
                p.requires_grad_(True)


def unfreezing(seed):
    """Fine-tuning of a CNN from digits 0-4 to 5-9: the head alone for 200 steps, then all of it, at 1e-3 with Adam."""
    x, y = digits()
    a, b = (y < 5).nonzero()[:, 0], (y >= 5).nonzero()[:, 0]
    net = conv()
    o, g = torch.optim.Adam(net.parameters(), lr=1e-3), G(seed)
    for _ in range(100):
        i = a[torch.randint(len(a), (32,), generator=g)]
        o.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        o.step()
    o.zero_grad()
    net[-1] = nn.Linear(512, 5)
    for k in list(net)[:-1]:
        k.requires_grad_(False)
    tr, te = split(len(b), seed)
    tr, te = b[tr], b[te]
    m = Task(net, ce, lambda p: torch.optim.Adam(p, lr=2e-3))
    return Run(
        m,
        loader(x[tr], y[tr] - 5, seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te] - 5),
        majority(y[te] - 5),
        {"max_steps": 500, "callbacks": [Unfreeze()]},
    )


def resumed(seed):
    """A text-book resume from a checkpoint by fit(ckpt_path), with momentum and a warm-up that ends at 0.3 after the
    resume."""
    d = datasets.load_wine()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)

    def build():
        torch.manual_seed(seed + 5)
        return Task(
            mlp(13, 64, 64, 3),
            ce,
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
            lambda o: LambdaLR(o, lambda k: min(1, (k + 1) / 150)),
        )

    kw = dict(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=-1,
    )
    t = Trainer(max_steps=100, **kw)
    t.fit(build(), loader(x[tr], y[tr], batch=16, seed=seed))
    path = os.path.join(tempfile.mkdtemp(dir=os.getcwd()), "a.ckpt")
    t.save_checkpoint(path)
    return Run(
        build(),
        loader(x[tr], y[tr], batch=16, seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 500},
        {"ckpt_path": path},
    )


class Ring(Manual):
    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(2, 64, 64, 2), mlp(2, 64, 64, 1, act=nn.LeakyReLU)

    def configure_optimizers(self):
        return torch.optim.Adam(self.g.parameters(), lr=1e-3, betas=(0.5, 0.9)), torch.optim.Adam(
            self.d.parameters(), lr=1e-3, betas=(0.5, 0.9)
        )

    def training_step(self, b, _):
        og, od = self.optimizers()
        r = G(int(b[0]))
        t = torch.rand(128, generator=r) * 2 * np.pi
        real = 2 * torch.stack([t.cos(), t.sin()], 1) + 0.1 * torch.randn(128, 2, generator=r)
        z = torch.randn(128, 2, generator=r)
        fake = self.g(z)
        self.update(od, F.softplus(-self.d(real)).mean() + F.softplus(self.d(fake.detach())).mean())
        ld = F.softplus(-self.d(self.g(z))).mean()
        self.update(og, ld)
        self.log("loss", ld)


def ring_gan(seed):
    """A GAN of a ring; manual optimization with two optimizers. Score: minus the deviation from the ring, in radius
    and in angle."""

    @torch.no_grad()
    def score(m):
        p = m.g(torch.randn(2000, 2, generator=G(9)))
        h = torch.histc(torch.atan2(p[:, 1], p[:, 0]), 12, -np.pi, np.pi) / 2000
        return -float((p.norm(dim=1) - 2).abs().mean()) - float((h - 1 / 12).abs().sum())

    return Run(Ring(), ticks(2000, seed), score, -2.6, {"max_steps": 2400})


def growing_values(seed):
    """Q-learning (discount 0.98) of a corridor whose values grow from 0 to 50, and the loss with them; target
    network of 0.99, Huber."""
    net = mlp(12, 64, 64, 2)
    tgt = mlp(12, 64, 64, 2)
    tgt.load_state_dict(net.state_dict())
    eye = torch.eye(12)

    def loss(m, b):
        r = G(int(b[0]))
        s, a = torch.randint(12, (64,), generator=r), torch.randint(2, (64,), generator=r)
        n = (s + 2 * a - 1).clamp(0, 11)
        with torch.no_grad():
            for p, q in zip(tgt.parameters(), m.net.parameters()):
                p.lerp_(q, 0.05)
            y = (n == 11).float() * 1.0 + 0.98 * tgt(eye[n]).max(1).values
        return F.smooth_l1_loss(m.net(eye[s]).gather(1, a[:, None])[:, 0], y)

    def score(m):
        with torch.no_grad():
            q = m.net(eye)
        return float((q.argmax(1) == 1).double().mean()) if torch.isfinite(q).all() else float("nan")

    return Run(
        Task(net, loss, lambda p: torch.optim.Adam(p, lr=2e-3)), ticks(2000, seed), score, 0.5, {"max_steps": 900}
    )


def single_samples(seed):
    """Batch size 1, SGD with momentum 0.9, accumulation of 3, with the tenth of the labels wrong: the gradients leap
    all the time."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    r = np.random.RandomState(seed)
    yn = y.clone()
    f = torch.as_tensor(r.rand(len(y)) < 0.05)
    yn[f] = 1 - yn[f]
    m = Task(mlp(30, 16, 2), ce, lambda p: torch.optim.SGD(p, lr=3e-3, momentum=0.9))
    return Run(
        m,
        loader(x[tr], yn[tr], batch=1, seed=seed),
        lambda m: accuracy(out(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 700, "accumulate_grad_batches": 3},
    )


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 48, batch_first=True), nn.Linear(48, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def curriculum(seed):
    """The adding problem (sum of the marked numbers) with a length of 5, then 10 from step 200, then 25 from step
    400; clipped by the user at 1."""

    def batch(g, n, length):
        v, k = torch.rand(n, length, generator=g), (torch.rand(n, length, generator=g) < 0.3).float()
        return torch.stack([v, k], 2), (v * k).sum(1, keepdim=True)

    def loss(m, b):
        x, y = batch(G(int(b[0])), 32, 5 if m.global_step < 200 else 10 if m.global_step < 400 else 25)
        return F.mse_loss(m.net(x), y)

    def score(m):
        x, y = batch(G(11), 500, 25)
        return r2(out(m, x), y)

    return Run(
        Task(Sum(), loss, lambda p: torch.optim.Adam(p, lr=5e-3)),
        ticks(2000, seed),
        score,
        0.0,
        {"max_steps": 700, "gradient_clip_val": 1.0},
    )


def double_swa(seed):
    """Double precision, stochastic weight averaging from the half on, the negative log-likelihood of a density that
    falls far below zero."""
    r = np.random.RandomState(seed)
    x = r.rand(2000, 1) * 4 - 2
    y = np.sin(3 * x) * 0.02 + 0.001 * (1 + x**2) * r.randn(2000, 1)
    tr, te = split(2000, seed)
    x, y = T(x, torch.float64), T(y, torch.float64)

    def loss(m, b):
        mu, ls = m.net(b[0]).chunk(2, 1)
        return (ls + 0.5 * ((b[1] - mu) / ls.exp()) ** 2).mean()

    m = Task(mlp(1, 64, 64, 2, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=2e-3))
    return Run(
        m,
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda m: r2(out(m.double(), x[te])[:, 0], y[te]),
        0.0,
        {
            "max_epochs": 35,
            "precision": "64-true",
            "callbacks": [StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=0.6, annealing_epochs=3)],
        },
    )


RUNS = [
    cyclic_conv,
    raw_progress,
    claims,
    unfreezing,
    resumed,
    ring_gan,
    growing_values,
    single_samples,
    curriculum,
    double_swa,
]
REGIME = {"unfreezing", "curriculum"}
