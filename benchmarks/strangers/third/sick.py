"""Twelve programs with one mistake each, and their twins without it (``twin=True``). ``build(seed, twin)`` returns a
Run."""

import math
from pathlib import Path

import numpy as np
import torch
from common import (
    G,
    L,
    Manual,
    Run,
    T,
    Task,
    Chars,
    accuracy,
    char_score,
    digits,
    letters,
    loader,
    majority,
    mlp,
    next_char,
    r2,
    ring,
    ring_score,
    small_cnn,
    split,
    standard,
    ticks,
    unigram,
)
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F


def tumour_two_heads(seed, twin):
    """Benign or not, and the worst area, from the other features; the mistake: the area is regressed raw (880 on
    average, up to 4254)."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    area, x, y = T(x[:, 23]), T(np.delete(x, [3, 13, 20, 22, 23], 1)), L(y)
    tr, te = split(len(y), seed)
    x, _, _ = standard(x, tr)
    target, m, s = standard(area, tr) if twin else (area, 0.0, 1.0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.label, self.area = mlp(25, 32, 32), nn.Linear(32, 2), nn.Linear(32, 1)

        def forward(self, x):
            h = F.relu(self.body(x))
            return self.label(h), self.area(h)[:, 0]

    def loss(t, batch):
        x, y, a = batch
        p, q = t.net(x)
        return F.cross_entropy(p, y) + F.mse_loss(q, a)

    @torch.no_grad()
    def score(t):
        p, q = t.net(x[te])
        base = majority(y[te])
        return 0.5 * (accuracy(p, y[te]) - base) / (1 - base) + 0.5 * r2(q * s + m, area[te])

    return Run(
        Task(Net(), loss, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        loader(x[tr], y[tr], target[tr], seed=seed),
        score,
        0.0,
        {"max_steps": 400},
    )


def letters_rnn_rate(seed, twin):
    """A plain RNN over letters by RMSprop; the mistake: a rate of 0.1 where 0.002 was meant."""
    w, te, v = letters(["diabetes", "breast_cancer", "wine", "iris", "linnerud"], seed)
    return Run(
        Task(Chars(nn.RNN, v), next_char, lambda p: torch.optim.RMSprop(p, 0.002 if twin else 0.1)),
        loader(w, batch=16, seed=seed),
        char_score(te),
        unigram(w, te, v),
        {"max_steps": 500},
    )


def mirror_noam_in_epochs(seed, twin):
    """A post-norm transformer mirrors sequences; the mistake: Noam's warm-up is given in epochs (5) instead of steps
    (150)."""
    n, v, d = 8, 6, 32
    g = G(seed + 5)
    x, xt = torch.randint(v, (2048, n), generator=g), torch.randint(v, (512, n), generator=g)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.pos = nn.Embedding(v, d), nn.Parameter(torch.randn(n, d) * 0.3)
            layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True)
            self.body, self.out = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(d, v)

        def forward(self, x):
            return self.out(self.body(self.emb(x) + self.pos))

    warm = 150 if twin else 5

    def noam(opt):
        return torch.optim.lr_scheduler.LambdaLR(opt, lambda s: d**-0.5 * min((s + 1) ** -0.5, (s + 1) * warm**-1.5))

    @torch.no_grad()
    def score(t):
        return accuracy(t.net(xt), xt.flip(1))

    return Run(
        Task(
            Net(),
            lambda t, b: F.cross_entropy(t.net(b[0]).flatten(0, 1), b[0].flip(1).flatten()),
            lambda p: torch.optim.Adam(p, 1.0, betas=(0.9, 0.98)),
            noam,
        ),
        loader(x, batch=64, seed=seed),
        score,
        1 / v,
        {"max_steps": 600},
    )


def digits_vae_sum(seed, twin):
    """A VAE of digits by SGD; the mistake: the loss is summed over the batch too."""
    x, _, xt, _ = digits(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(64, 96, 16), mlp(8, 96, 64)

        def elbo(self, x, eps):
            mu, logvar = self.enc(x).chunk(2, 1)
            p = self.dec(mu + eps * (logvar / 2).exp())
            kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
            return -F.binary_cross_entropy_with_logits(p, x, reduction="none").sum(1) - kl

    def loss(t, batch):
        bound = -t.net.elbo(batch[0], torch.randn(len(batch[0]), 8))
        return bound.mean() if twin else bound.sum()

    @torch.no_grad()
    def score(t):
        return float(t.net.elbo(xt, torch.randn(len(xt), 8, generator=G(1))).mean())

    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    trivial = float((xt * mean.log() + (1 - xt) * (1 - mean).log()).sum(1).mean())
    return Run(
        Task(Net(), loss, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9)),
        loader(x, batch=64, seed=seed),
        score,
        trivial,
        {"max_steps": 800},
    )


def moons_diffusion_snr(seed, twin):
    """A diffusion model of two moons, weighted by signal to noise; the mistake: the weight is not bounded, and
    infinite at t = 0."""
    from sklearn.datasets import make_moons

    x = T(make_moons(4000, noise=0.05, random_state=seed)[0])
    x = (x - x.mean(0)) / x.std(0)
    steps = 1000
    abar = (torch.arange(steps) / steps * torch.pi / 2).cos() ** 2
    xt = x[3000:]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(10, 96, 96, 2, act=nn.SiLU)

        def forward(self, z, t):
            a = (t[:, None] / steps) * torch.tensor([1.0, 2.0, 4.0, 8.0])
            return self.body(torch.cat([z, a.sin(), a.cos()], 1))

    def noisy(x, t, eps):
        return abar[t, None].sqrt() * x + (1 - abar[t, None]).sqrt() * eps

    def loss(m, batch):
        x = batch[0]
        t = torch.randint(steps, (len(x),))
        p = m.net(noisy(x, t, torch.randn_like(x)), t)
        snr = abar[t] / (1 - abar[t])
        if twin:
            snr = snr.clamp(max=5)
        return (snr * ((p - x) ** 2).mean(1)).mean()

    @torch.no_grad()
    def score(m):
        t = torch.randint(steps, (len(xt),), generator=G(2))
        return r2(m.net(noisy(xt, t, torch.randn(len(xt), 2, generator=G(3))), t), xt)

    return Run(
        Task(Net(), loss, lambda p: torch.optim.AdamW(p, 2e-3)),
        loader(x[:3000], batch=64, seed=seed),
        score,
        0.0,
        {"max_steps": 1000},
    )


class Pole:
    """Poles on carts, side by side; after Barto, Sutton and Anderson."""

    def __init__(self, n, g):
        self.s, self.alive = (torch.rand(n, 4, generator=g) - 0.5) * 0.1, torch.ones(n)

    def step(self, a):
        x, v, th, w = self.s.unbind(1)
        force = a.float() * 20 - 10
        c, s = th.cos(), th.sin()
        q = (force + 0.05 * w**2 * s) / 1.1
        acc = (9.8 * s - c * q) / (0.5 * (4 / 3 - 0.1 * c**2 / 1.1))
        xacc = q - 0.05 * acc * c / 1.1
        self.s = torch.stack([x + 0.02 * v, v + 0.02 * xacc, th + 0.02 * w, w + 0.02 * acc], 1)
        reward = self.alive
        self.alive = self.alive * ((self.s[:, 0].abs() < 2.4) & (self.s[:, 2].abs() < 0.21)).float()
        return reward


@torch.no_grad()
def balance(net, policy, n=100, length=100, seed=77):
    """Mean share of the time for which the pole stays up."""
    g = G(seed)
    pole, total = Pole(n, g), 0.0
    for _ in range(length):
        total += float(pole.step(policy(net, pole.s, g)).mean())
    return total / length


def greedy(net, s, g):
    p = net(s)
    return p.argmax(1) if torch.isfinite(p).all() else torch.zeros(len(s))


def pole_raw_returns(seed, twin):
    """REINFORCE with a pole on a cart; the mistake: returns are neither centred nor scaled, and summed over all
    steps and episodes."""

    def loss(t, batch):
        g = G(int(batch[0][0]))
        pole, logp, rewards = Pole(16, g), [], []
        for _ in range(100):
            lp = F.log_softmax(t.net(pole.s), 1)
            a = (torch.rand(16, generator=g) < lp[:, 1].detach().exp()).long()
            logp.append(lp.gather(1, a[:, None])[:, 0])
            rewards.append(pole.step(a))
            if not pole.alive.any():
                break
        logp, rewards = torch.stack(logp), torch.stack(rewards)
        returns = rewards.flip(0).cumsum(0).flip(0)
        if not twin:
            return -(logp * returns * rewards).sum()
        live = rewards > 0
        returns = (returns - returns[live].mean()) / (returns[live].std() + 1e-6)
        return -(logp * returns)[live].mean()

    return Run(
        Task(mlp(4, 32, 2, act=nn.Tanh), loss, lambda p: torch.optim.SGD(p, 0.5)),
        ticks(400, seed),
        lambda t: balance(t.net, greedy),
        balance(None, lambda _, s, g: torch.randint(2, (len(s),), generator=g)),
        {"max_steps": 200},
    )


def views_raw_temperature(seed, twin):
    """Two noisy views of a digit find each other; the mistake: the temperature itself is learned, not its logarithm,
    and crosses 0."""
    x, _, xt, _ = digits(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(64, 96, 16)
            self.tau = nn.Parameter(torch.tensor(math.log(0.1) if twin else 0.1))

        def forward(self, x):
            return F.normalize(self.body(x), dim=1)

    def views(x, g):
        return [x + 0.25 * torch.randn(x.shape, generator=g) for _ in range(2)]

    def loss(t, batch):
        a, b = (t.net(v) for v in views(batch[0], None))
        return F.cross_entropy(a @ b.T / (t.net.tau.exp() if twin else t.net.tau), torch.arange(len(a)))

    @torch.no_grad()
    def score(t):
        a, b = (t.net(v) for v in views(xt[:256], G(4)))
        return accuracy(a @ b.T, torch.arange(256))

    task = Task(Net(), loss, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    return Run(
        task, loader(x, batch=64, seed=seed), score, score(task), {"max_steps": 600}
    )  # trivial: an encoder that has learned nothing


def string_lbfgs_no_search(seed, twin):
    """A vibrating string's shape from its equation by L-BFGS; the mistake: no line search."""

    def residual(net, x):
        x = x.requires_grad_()
        u = x * (1 - x) * net(x)
        d = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        dd = torch.autograd.grad(d.sum(), x, create_graph=True)[0]
        return dd + 16 * u + 40 * torch.sin(3 * torch.pi * x)

    x = torch.rand(640, 1, generator=G(seed))
    grid = torch.linspace(0, 1, 200)[:, None]
    exact = 40 / (9 * torch.pi**2 - 16) * torch.sin(3 * torch.pi * grid)
    return Run(
        Task(
            mlp(1, 24, 24, 1, act=nn.Tanh),
            lambda t, b: (residual(t.net, b[0].clone()) ** 2).mean(),
            lambda p: torch.optim.LBFGS(p, 1.0, max_iter=10, line_search_fn="strong_wolfe" if twin else None),
        ),
        loader(x, batch=64, seed=seed),
        lambda t: r2((grid * (1 - grid) * t.net(grid)).detach(), exact),
        0.0,
        {"max_steps": 60},
    )


def ring_gan_rate(seed, twin):
    """A GAN with two optimizers; the mistake: the discriminator's rate is 0.1 where 0.001 was meant."""

    class Gan(Manual):
        def __init__(self):
            super().__init__()
            self.gen, self.dis = mlp(2, 64, 64, 2, act=nn.LeakyReLU), mlp(2, 64, 64, 1, act=nn.LeakyReLU)

        def training_step(self, batch, _):
            real = batch[0]
            og, od = self.optimizers()
            fake = self.gen(torch.randn(len(real), 2))
            loss = F.softplus(-self.dis(real)).mean() + F.softplus(self.dis(fake.detach())).mean()
            self.log("discriminator", loss)
            self.update(od, loss)
            loss = F.softplus(-self.dis(fake)).mean()
            self.log("generator", loss)
            self.update(og, loss)

        def configure_optimizers(self):
            return (
                torch.optim.Adam(self.gen.parameters(), 1e-3, betas=(0.5, 0.99)),
                torch.optim.Adam(self.dis.parameters(), 1e-3 if twin else 0.1, betas=(0.5, 0.99)),
            )

    return Run(
        Gan(),
        loader(ring(4096, G(seed)), batch=64, seed=seed),
        ring_score(lambda m, z: m.gen(z)),
        0.0,
        {"max_steps": 2400},
    )


def cell_flow_raw(seed, twin):
    """A normalising flow of ten features of cells by NAdam; the mistake: the features are raw (from 0.02 to 2501)."""
    from sklearn.datasets import load_breast_cancer

    raw = T(load_breast_cancer().data[:, :10])
    tr, te = split(len(raw), seed)
    std, _, s = standard(raw, tr)
    x = std if twin else raw

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(mlp(5, 48, 10) for _ in range(6))

        def forward(self, x):
            a, b, total = x[:, :5], x[:, 5:], 0
            for part in self.parts:
                scale, shift = part(a).chunk(2, 1)
                b, total = b * scale.exp() + shift, total + scale.sum(1)
                a, b = b, a
            z = torch.cat([a, b], 1)
            return total - 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)

    @torch.no_grad()
    def score(t):
        v = t.net(x[te])
        return float(v.mean() - s.log().sum()) if twin else float(v.mean())

    plain = -0.5 * (std[te] ** 2 + math.log(2 * math.pi)).sum(1) - s.log().sum()
    return Run(
        Task(Net(), lambda t, b: -t.net(b[0]).mean(), lambda p: torch.optim.NAdam(p, 1e-3)),
        loader(x[tr], seed=seed),
        score,
        float(plain.mean()),
        {"max_steps": 600},
    )


def resumed_gamma_ten(seed, twin):
    """Digits, resumed at step 120; the mistake: the schedule's gamma, for steps 180 and 240, is 10 instead of 0.1."""
    x, y, xt, yt = digits(seed)

    def task():
        return Task(
            small_cnn(),
            lambda t, b: F.cross_entropy(t.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [180, 240], 0.1 if twin else 10.0),
        )

    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=120,
    )
    first.fit(task(), loader(x, y, seed=seed))
    path = str(Path("first.ckpt").resolve())
    first.save_checkpoint(path)

    @torch.no_grad()
    def score(t):
        return accuracy(t.net(xt), yt)

    return Run(task(), loader(x, y, seed=seed), score, majority(yt), {"max_steps": 420}, {"ckpt_path": path})


def graph_kicked(seed, twin):
    """Classes of a graph's nodes, with noise added to all weights every 80 steps; the mistake: of deviation 3 where
    0.03 was meant."""
    g = G(seed + 20)
    n, k = 400, 4
    y = torch.randint(k, (n,), generator=g)
    p = torch.where(y[:, None] == y, 0.06, 0.01)
    a = (torch.rand(n, n, generator=g) < p).float().triu(1)
    a = a + a.T + torch.eye(n)
    a = a / a.sum(1, keepdim=True)
    f = F.one_hot(y, k).float() + torch.randn(n, k, generator=g)
    f = torch.cat([f, torch.randn(n, 12, generator=g)], 1)
    tr, te = split(n, seed, 0.5)
    tr, te = L(tr), L(te)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, k)

        def forward(self, x):
            x = torch.tanh(self.one(a @ x))
            return self.three(torch.tanh(self.two(a @ x)))

    class Kicked(Task):
        def on_train_batch_end(self, *_):
            if self.global_step % 80 == 0 and self.global_step < 400:
                noise = G(self.global_step)
                with torch.no_grad():
                    for w in self.net.parameters():
                        w += (0.03 if twin else 3.0) * torch.randn(w.shape, generator=noise)

    @torch.no_grad()
    def score(t):
        return accuracy(t.net(f)[te], y[te])

    return Run(
        Kicked(
            Net(),
            lambda t, b: F.cross_entropy(t.net(f)[b[0]], y[b[0]]),
            lambda q: torch.optim.AdamW(q, 2e-3, weight_decay=0.02),
        ),
        loader(tr, batch=50, seed=seed),
        score,
        majority(y[te]),
        {"max_steps": 440},
    )


RUNS = [
    tumour_two_heads,
    letters_rnn_rate,
    mirror_noam_in_epochs,
    digits_vae_sum,
    moons_diffusion_snr,
    pole_raw_returns,
    views_raw_temperature,
    string_lbfgs_no_search,
    ring_gan_rate,
    cell_flow_raw,
    resumed_gamma_ten,
    graph_kicked,
]
