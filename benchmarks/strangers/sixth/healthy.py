"""Eight healthy programs that look frightening."""

import numpy as np
import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from torch.nn import functional as F

from common import L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, ticks


def cross(m, b):
    return F.cross_entropy(m.net(b[0]), b[1])


@torch.no_grad()
def predict(m, x):
    m.eval()
    return m.net(x).float()


def claims_batch_of_one(seed):
    """Insurance claims with infinite variance (Student's t of 1.5 degrees), batches of one, absolute error, Adagrad."""
    r = np.random.RandomState(seed)
    x = r.randn(2000, 6)
    clean = 2 * x[:, 0] - x[:, 1] + np.abs(x[:, 2])
    y = T(clean + r.standard_t(1.5, 2000))
    tr, te = split(2000, seed)
    x = T(x)
    m = Task(
        mlp(6, 32, 1), lambda m, b: F.l1_loss(m.net(b[0]).squeeze(-1), b[1]), lambda p: torch.optim.Adagrad(p, lr=0.05)
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=1, seed=seed),
        lambda m: r2(predict(m, x[te]), T(clean[te])),
        0.0,
        {"max_steps": 1000},
    )


def digits_warm_restarts(seed):
    """A convolutional network under SGD whose rate goes back to 0.2 every 120 steps; every peak undoes some of the
    fit."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(x / 16 - 0.3).view(-1, 1, 8, 8), L(y)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    m = Task(
        net,
        cross,
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 120),
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 600},
    )


class Gan(Manual):
    """A small Wasserstein GAN (clipped weights) on a ring; the losses have no floor and change sign."""

    def __init__(self):
        super().__init__()
        self.gen, self.dis = mlp(4, 48, 48, 2), mlp(2, 48, 48, 1)

    def training_step(self, batch, _):
        og, od = self.optimizers()
        g = torch.Generator().manual_seed(int(batch[0][0]))
        angle = 6.2832 * torch.rand(64, generator=g)
        real = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(64, 2, generator=g)
        fake = self.gen(torch.randn(64, 4, generator=g))
        self.update(od, self.dis(fake.detach()).mean() - self.dis(real).mean())
        with torch.no_grad():
            for p in self.dis.parameters():
                p.clamp_(-0.1, 0.1)
        loss = -self.dis(fake).mean()
        self.update(og, loss)
        self.log("loss", loss)

    def configure_optimizers(self):
        return (
            torch.optim.RMSprop(self.gen.parameters(), lr=5e-4),
            torch.optim.RMSprop(self.dis.parameters(), lr=2e-3),
        )


def ring_wgan(seed):
    """A Wasserstein GAN with RMSprop."""

    @torch.no_grad()
    def score(m):
        s = m.gen(torch.randn(1000, 4, generator=torch.Generator().manual_seed(5))).norm(dim=1)
        return -float((s - 2).abs().mean())

    return Run(Gan(), ticks(700, seed), score, -2.0, {"max_steps": 1400})


class Walk(Manual):
    """Actor and critic on a corridor of nine cells; the only reward (10) is at its far end, so most episodes pay
    nothing."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = mlp(9, 32, 2), mlp(9, 32, 1)

    def training_step(self, batch, _):
        g = torch.Generator().manual_seed(int(batch[0][0]))
        at, alive = torch.full((8,), 3), torch.ones(8)
        logs, values, rewards, masks = [], [], [], []
        for _ in range(14):
            x = F.one_hot(at, 9).float()
            logp = self.actor(x).log_softmax(-1)
            a = torch.multinomial(logp.detach().exp(), 1, generator=g)[:, 0]
            logs.append(logp.gather(1, a[:, None])[:, 0])
            values.append(self.critic(x)[:, 0])
            masks.append(alive)
            at = (at + 2 * a - 1).clamp(0, 8)
            rewards.append(10 * (at == 8).float() * alive)
            alive = alive * (at != 8).float() * (at != 0).float()
        back, returns = torch.zeros(8), []
        for w in reversed(rewards):
            back = w + 0.97 * back
            returns.append(back)
        ret, val, mask = torch.stack(returns[::-1]), torch.stack(values), torch.stack(masks)
        oa, oc = self.optimizers()
        self.update(oc, (mask * (val - ret) ** 2).sum() / mask.sum())
        loss = -(mask * torch.stack(logs) * (ret - val.detach())).sum() / mask.sum()
        self.update(oa, loss)
        self.log("loss", loss)

    def configure_optimizers(self):
        return (torch.optim.Adam(self.actor.parameters(), lr=3e-3), torch.optim.Adam(self.critic.parameters(), lr=1e-2))


def corridor_actor_critic(seed):
    """Sparse rewards, an actor and a critic with an optimizer each."""

    @torch.no_grad()
    def score(m):
        return float(m.actor(torch.eye(9)).softmax(-1)[1:8, 1].mean())

    return Run(Walk(), ticks(350, seed), score, 0.5, {"max_steps": 700})


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec, self.seen = mlp(64, 64, 16), mlp(8, 64, 64), 0

    def forward(self, x):
        mean, logvar = self.enc(x).chunk(2, -1)
        return mean, logvar


def vae_ramp(seed):
    """The weight of a VAE's divergence is 0 for 200 steps and then grows to 4, so the loss grows several times over."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x = T(x / 16)

    def loss(m, b):
        mean, logvar = m.net(b[0])
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        m.net.seen += 1
        beta = 4 * min(max(m.net.seen - 200, 0) / 300, 1)
        return ((m.net.dec(z) - b[0]) ** 2).sum(-1).mean() + beta * kl

    @torch.no_grad()
    def score(m):
        return r2(m.net.dec(m.net(x[te])[0]), x[te])

    return Run(
        Task(Vae(), loss, lambda p: torch.optim.Adam(p, lr=2e-3)),
        loader(x[tr], batch=64, seed=seed),
        score,
        0.0,
        {"max_steps": 700},
    )


class Stages(Task):
    """After 300 steps the head is new and the classes are others."""

    def training_step(self, batch, i):
        if self.global_step == 300:
            with torch.no_grad():
                self.net[-1].reset_parameters()
        x, y, later = batch
        return super().training_step((x, later if self.global_step >= 300 else y), i)


def new_head(seed):
    """Fine-tuning: the first 300 steps learn the ten digits, then a new head learns other labels with the same
    AdamW."""
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    later = L(np.array([7, 3, 9, 0, 1, 2, 8, 5, 4, 6])[y])
    x, y = T(x / 16 - 0.3), L(y)
    m = Stages(mlp(64, 64, 64, 10), cross, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return Run(
        m,
        loader(x[tr], y[tr], later[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), later[te]),
        majority(later[te]),
        {"max_steps": 600},
    )


class Spread(nn.Module):
    """The mean and the logarithm of the deviation."""

    def __init__(self):
        super().__init__()
        self.f = mlp(4, 24, 2, act=nn.Tanh)

    def forward(self, x):
        return self.f(x)


def lbfgs_likelihood(seed):
    """A density of nearly noiseless measurements, LBFGS on the whole set: the loss goes far below zero in leaps."""
    r = np.random.RandomState(seed)
    x = r.randn(600, 4)
    y = T(np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.01 * r.randn(600))
    tr, te = split(600, seed)
    x = T(x)

    def loss(m, b):
        mean, s = m.net(b[0]).unbind(-1)
        return (s + 0.5 * ((b[1] - mean) * (-s).exp()) ** 2).mean()

    m = Task(Spread(), loss, lambda p: torch.optim.LBFGS(p, lr=1, max_iter=2, line_search_fn="strong_wolfe"))
    return Run(
        m,
        loader(x[tr], y[tr], batch=450, seed=seed),
        lambda m: r2(predict(m, x[te])[:, 0], y[te]),
        0.0,
        {"max_steps": 300},
    )


class Lion(torch.optim.Optimizer):
    """Sign of interpolated momentum."""

    def __init__(self, params, lr, betas=(0.9, 0.99), wd=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "wd": wd})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for g in self.param_groups:
            b1, b2 = g["betas"]
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["m"] = torch.zeros_like(p)
                p.mul_(1 - g["lr"] * g["wd"]).sub_(g["lr"] * (b1 * s["m"] + (1 - b1) * p.grad).sign())
                s["m"].mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


class Chars(nn.Module):
    """A recurrent language model."""

    def __init__(self, k=20):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(k, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, k)

    def forward(self, w):
        return self.out(self.rnn(self.emb(w))[0])


def chars_lion_resumed(seed):
    """A language model under Lion in bf16-mixed, two batches a step, that goes on from a checkpoint."""
    r = np.random.RandomState(seed)
    p = r.dirichlet(np.full(20, 0.15), 20)
    s = [0]
    for _ in range(25000):
        s.append(int(r.choice(20, p=p[s[-1]])))
    w = L(s[:24000]).view(-1, 12)

    def loss(m, b):
        return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())

    def build():
        return Task(
            Chars(),
            loss,
            lambda p: Lion(p, lr=2e-3, wd=0.01),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(t / 50, 1)),
        )

    common = {"precision": "bf16-mixed", "accumulate_grad_batches": 2}
    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=100,
        **common,
    )
    m = build()
    first.fit(m, loader(w[:1600], batch=8, seed=seed))
    first.save_checkpoint("first.ckpt")

    @torch.no_grad()
    def score(m):
        return -float(loss(m, (w[1600:],)))

    return Run(
        build(),
        loader(w[:1600], batch=8, seed=seed + 1),
        score,
        -float(np.log(20)),
        {"max_steps": 400, **common},
        {"ckpt_path": "first.ckpt"},
    )


RUNS = [
    claims_batch_of_one,
    digits_warm_restarts,
    ring_wgan,
    corridor_actor_critic,
    vae_ramp,
    new_head,
    lbfgs_likelihood,
    chars_lion_resumed,
]
REGIME = {"vae_ramp", "new_head"}
