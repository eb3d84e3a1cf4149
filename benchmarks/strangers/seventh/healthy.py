"""Ten programs that are right as they are and look frightening; REGIME names those whose data, loss or task changes
for good."""

import math

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import LightningModule, Trainer
from pydoc_data.topics import topics
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn
from torch.nn import functional as F


def digits(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    return T(x[tr] / 16), L(y[tr]), T(x[te] / 16), L(y[te])


class Reinforce(LightningModule):
    """A 5x5 grid with a goal in the corner; REINFORCE on 16 episodes at a time, rewarded by 10 only at the goal."""

    def __init__(self):
        super().__init__()
        self.pi = mlp(25, 32, 4)

    def episodes(self, g, n=16, length=14):
        pos = torch.zeros(n, 2, dtype=torch.long)
        done, reward, logs = torch.zeros(n, dtype=torch.bool), torch.zeros(n), []
        for t in range(length):
            lp = F.log_softmax(self.pi(F.one_hot(pos[:, 0] * 5 + pos[:, 1], 25).float()), 1)
            a = torch.multinomial(lp.detach().exp(), 1, generator=g)
            logs.append(lp.gather(1, a)[:, 0] * ~done)
            pos = (pos + torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])[a[:, 0]]).clamp(0, 4)
            hit = (pos == 4).all(1) & ~done
            reward[hit] = 10 * 0.98**t
            done |= hit
        return torch.stack(logs).sum(0), reward

    def training_step(self, b, _):
        lp, r = self.episodes(G(int(b[0][0])))
        loss = -(lp * r).sum()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def sparse_reward(seed):
    def score(m):
        with torch.no_grad():
            return float(m.episodes(G(7), 200)[1].mean())

    return Run(Reinforce(), ticks(2000, seed), score, 0.3, {"max_steps": 700})


class Gan(Manual):
    """A hinge GAN of eight blobs on a ring, a critic of two steps."""

    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

    def configure_optimizers(self):
        return torch.optim.Adam(self.g.parameters(), lr=2e-3, betas=(0.0, 0.9)), torch.optim.Adam(
            self.d.parameters(), lr=4e-3, betas=(0.0, 0.9)
        )

    def training_step(self, b, _):
        g, d = self.optimizers()
        for _ in range(2):
            fake = self.g(torch.randn(len(b[0]), 8)).detach()
            d_loss = F.relu(1 - self.d(b[0])).mean() + F.relu(1 + self.d(fake)).mean()
            self.update(d, d_loss)
        g_loss = -self.d(self.g(torch.randn(len(b[0]), 8))).mean()
        self.update(g, g_loss)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})


def ring_gan(seed):
    a = torch.randint(8, (4000,), generator=G(seed)) * (math.pi / 4)
    x = 2 * torch.stack([a.cos(), a.sin()], 1) + 0.05 * torch.randn(4000, 2, generator=G(seed + 1))

    def score(m):
        with torch.no_grad():
            return -float(torch.cdist(m.g(torch.randn(500, 8, generator=G(3))), x[:500]).min(1).values.mean())

    return Run(Gan(), loader(x, batch=64, seed=seed), score, -1.2, {"max_steps": 1500})


def lbfgs_minibatches(seed):
    """LBFGS on mini-batches: every step evaluates the closure many times and the loss jumps from batch to batch."""
    x, y = load_breast_cancer(return_X_y=True)
    tr, te = split(len(x), seed)
    x = standard(x, tr)[0]
    xt, yt = T(x[te]), L(y[te])
    task = Task(
        mlp(30, 16, 2, act=nn.Tanh),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]) + 1e-2 * sum((p**2).sum() for p in m.net.parameters()),
        lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=4, history_size=8),
    )
    return Run(
        task,
        loader(T(x[tr]), L(y[tr]), batch=140, seed=seed),
        lambda m: accuracy(m.net(xt), yt),
        majority(yt),
        {"max_steps": 400},
    )


def heavy_tails_one_by_one(seed):
    """Diabetes with batches of one example, a squared error and Cauchy-like noise in one target of thirty."""
    x, y = load_diabetes(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = standard(x, tr)[0], (y - y[tr].mean()) / y[tr].std()
    xt, yt = T(x[te]), T(y[te])
    rng = np.random.RandomState(seed)
    y = y + (rng.rand(len(y)) < 1 / 30) * rng.standard_t(1.5, len(y)) * 4
    task = Task(
        mlp(10, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.SGD(p, lr=2e-3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s / 300)),
    )
    return Run(
        task, loader(T(x[tr]), T(y[tr]), batch=1, seed=seed), lambda m: r2(m.net(xt), yt), 0.0, {"max_steps": 1500}
    )


def warm_restarts(seed):
    """A convolutional net with batch norm at a rate of 0.8 with four warm restarts."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], label_smoothing=0.1),
        lambda p: torch.optim.SGD(p, lr=0.8, momentum=0.9, nesterov=True, weight_decay=5e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 200),
    )
    return Run(
        task,
        loader(x, y, batch=64, seed=seed),
        lambda m: accuracy(m.net.eval()(xt), yt),
        majority(yt),
        {"max_steps": 799},
    )


class Recurrent(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.emb, self.gru, self.head = nn.Embedding(vocab, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, vocab)

    def forward(self, x):
        return self.head(self.gru(self.emb(x))[0])


class Curriculum(Task):
    def training_step(self, b, i):
        n = (4, 10, 24)[min(2, self.trainer.global_step // 250)]
        loss = F.cross_entropy(self.net(b[0][:, :n]).transpose(1, 2), b[0][:, 1 : n + 1], reduction="sum") / len(b[0])
        self.log("loss", loss)
        return loss


def longer_and_longer(seed):
    """A character model on sequences that grow from 4 to 10 to 24; the loss is summed over them, so it grows in
    jumps."""
    text = "".join(topics[k] for k in ("assignment", "import", "strings", "function"))
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(c) for c in text])
    w = ids[: len(ids) // 25 * 25].view(-1, 25)
    k = int(0.9 * len(w))

    def score(m):
        with torch.no_grad():
            return -float(F.cross_entropy(m.net(w[k:, :-1]).transpose(1, 2), w[k:, 1:]))

    return Run(
        Curriculum(Recurrent(len(chars)), None, lambda p: torch.optim.AdamW(p, lr=5e-3)),
        loader(w[:k], batch=16, seed=seed),
        score,
        -3.1,
        {"max_steps": 750},
    )


class Unfreeze(Task):
    """A body trained before on other classes, a new head; the body is released at step 250 at the head's full rate."""

    def on_train_batch_start(self, *_):
        for p in self.net[:-1].parameters():
            p.requires_grad_(self.trainer.global_step >= 250)


def unfrozen_body(seed):
    x, y, xt, yt = digits(seed)
    net = mlp(64, 64, 64, 10)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    old = y < 5
    for _ in range(100):
        opt.zero_grad()
        F.cross_entropy(net(x[old]), y[old]).backward()
        opt.step()
    net[-1] = nn.Linear(64, 10)
    nn.init.normal_(net[-1].weight, std=1.0)
    task = Unfreeze(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(
        task, loader(x, y, batch=16, seed=seed), lambda m: accuracy(m.net(xt), yt), majority(yt), {"max_steps": 700}
    )


def sharp_density(seed):
    """A mixture density of a thin curve: the negative log-likelihood falls below zero and spikes where a component
    is too narrow."""
    g = G(seed)
    t = torch.rand(3000, 1, generator=g) * 2 - 1
    y = torch.sin(5 * t) * torch.where(torch.rand(3000, 1, generator=g) < 0.5, 1.0, -1.0) + 0.01 * torch.randn(
        3000, 1, generator=g
    )

    def nll(m, b):
        w, mu, s = m.net(b[0]).chunk(3, 1)
        z = (b[1] - mu) * torch.exp(-s)
        return -torch.logsumexp(F.log_softmax(w, 1) - s - z**2 / 2 - 0.919, 1).mean()

    def score(m):
        with torch.no_grad():
            return -float(nll(m, (t[2500:], y[2500:])))

    return Run(
        Task(mlp(1, 64, 64, 12, act=nn.Tanh), nll, lambda p: torch.optim.RMSprop(p, lr=2e-3)),
        loader(t[:2500], y[:2500], batch=24, seed=seed),
        score,
        -1.1,
        {"max_steps": 1200},
    )


def digits_in_two_tasks(seed):
    """The digits 0 to 4 in the first half, then only the digits 5 to 9."""
    x, y, xt, yt = digits(seed)
    g = G(seed)
    a, b = torch.nonzero(y < 5)[:, 0], torch.nonzero(y >= 5)[:, 0]
    order = torch.cat([v[torch.randint(len(v), (350 * 20,), generator=g)] for v in (a, b)])
    new = yt >= 5
    task = Task(
        mlp(64, 64, 64, 10),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    )
    return Run(
        task,
        loader(x[order], y[order], batch=20, seed=seed, shuffle=False),
        lambda m: accuracy(m.net(xt[new]), yt[new]),
        majority(yt[new]),
        {"max_steps": 700},
    )


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(32, 64) * 0.1), nn.Parameter(torch.randn(16, 32) * 0.2)
        self.b = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in (32, 16, 32, 64)])

    def forward(self, x):
        h = torch.tanh(F.linear(torch.tanh(F.linear(x, self.w, self.b[0])), self.v, self.b[1]))
        return F.linear(torch.tanh(F.linear(h, self.v.T, self.b[2])), self.w.T, self.b[3])


def resumed_tied_bf16(seed):
    """A tied autoencoder in bf16 with accumulated batches, resumed from a checkpoint with another loader of smaller
    batches."""
    x, _, xt, _ = digits(seed)
    settings = {"precision": "bf16-mixed", "accumulate_grad_batches": 2}

    def build():
        return Task(
            Tied(), lambda m, b: ((m.net(b[0]) - b[0]) ** 2).sum(1).mean(), lambda p: torch.optim.NAdam(p, lr=2e-3)
        )

    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=200,
        **settings,
    )
    first.fit(build(), loader(x, seed=seed))
    first.save_checkpoint("first.ckpt")

    def score(m):
        with torch.no_grad():
            return r2(m.net(xt), xt)

    return Run(
        build(),
        loader(x, batch=8, seed=seed + 1),
        score,
        r2(x.mean(0).expand_as(xt), xt),
        {"max_steps": 700, **settings},
        {"ckpt_path": "first.ckpt"},
    )


RUNS = [
    sparse_reward,
    ring_gan,
    lbfgs_minibatches,
    heavy_tails_one_by_one,
    warm_restarts,
    longer_and_longer,
    unfrozen_body,
    sharp_density,
    digits_in_two_tasks,
    resumed_tied_bf16,
]
REGIME = {"longer_and_longer", "digits_in_two_tasks"}
