"""Nine small programs, each with one mistake as people make them."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from sklearn import datasets
from torch import nn

from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks


def dropout_code_gru(seed, twin=False):
    """A GRU forecasts the next reading of four correlated sensors, with Adagrad. The logger writes -9999 where sensor 2
    drops out (twice in the record), and nobody replaced the code before making windows; in the twin it is the mean."""
    rng = np.random.RandomState(seed)
    n, w = 6000, 24
    t = np.arange(n)[:, None]
    x = np.sin(2 * np.pi * t / np.array([[13, 29, 17, 41]]) + rng.rand(4) * 6)
    x = x @ (np.eye(4) + 0.4 * rng.randn(4, 4)) + 0.15 * rng.randn(n, 4)
    x = (x - x.mean(0)) / x.std(0)
    clean = T(x[4500:])
    x[rng.choice(4500, 2, replace=False), 2] = 0.0 if twin else -9999.0
    win = T(x[:4500]).unfold(0, w + 1, 1).transpose(1, 2)
    hold = clean.unfold(0, w + 1, 1).transpose(1, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    def loss(m, b):
        return F.mse_loss(m.net(b[0][:, :-1]), b[0][:, -1])

    @torch.no_grad()
    def score(m):
        return r2(m.net(hold[:, :-1]), hold[:, -1])

    module = Task(Net(), loss, lambda p: torch.optim.Adagrad(p, lr=0.03))
    return Run(module, loader(win, batch=64, seed=seed), score, 0.0, {"max_steps": 700})


def pinn_plain_lbfgs(seed, twin=False):
    """A physics-informed network solves u'' + u'/2 + 9 u = f with u(-1) = u(1) = 0 by L-BFGS on batches of
    points. The optimizer is used as torch gives it, rate 1 without a line search; the twin asks for strong_wolfe."""
    k = 2.5 * np.pi
    x = torch.linspace(-1, 1, 256).unsqueeze(1)

    def exact(x):
        return torch.sin(k * x) * (1 - x**2)

    def residual(u, x):
        d1 = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        d2 = torch.autograd.grad(d1.sum(), x, create_graph=True)[0]
        return d2 + 0.5 * d1 + 9 * u

    xe = x.double().requires_grad_()
    f = residual(exact(xe), xe).detach().float()

    def loss(m, b):
        x = b[0].clone().requires_grad_()
        edge = m.net(torch.tensor([[-1.0], [1.0]]))
        return (residual(m.net(x), x) - b[1]).square().mean() + 100 * edge.square().mean()

    def opt(p):
        return torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe" if twin else None)

    @torch.no_grad()
    def score(m):
        return r2(m.net(x), exact(x))

    module = Task(mlp(1, 32, 32, 1, act=nn.Tanh), loss, opt)
    return Run(module, loader(x, f, batch=64, seed=seed), score, 0.0, {"max_steps": 250})


def char_lm_endless_warmup(seed, twin=False):
    """A small transformer models the characters of scikit-learn's descriptions, with NAdam and a linear warm-up of 20
    steps. The warm-up lacks its min(1, ...), so the rate grows as long as the run goes on."""
    names = ("iris", "diabetes", "digits", "wine", "breast_cancer", "linnerud")
    text = "".join(getattr(datasets, "load_" + n)().DESCR for n in names)
    chars = sorted(set(text))
    ids = L([chars.index(c) for c in text])
    w, d = 32, 48
    blocks = ids[: len(ids) // 320 * 320].view(-1, 320)
    win = blocks[:, :256].unfold(1, w + 1, 4).reshape(-1, w + 1)
    hold = blocks[:, 256:].unfold(1, w + 1, w - 1).reshape(-1, w + 1)

    class LM(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.pos = nn.Embedding(len(chars), d), nn.Parameter(0.02 * torch.randn(w, d))
            layer = nn.TransformerEncoderLayer(d, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.out = nn.Linear(d, len(chars))

        def forward(self, i):
            mask = nn.Transformer.generate_square_subsequent_mask(w)
            return self.out(self.body(self.emb(i) + self.pos, mask=mask, is_causal=True))

    def loss(m, b):
        return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())

    def sched(opt):
        return torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1) / 20) if twin else (s + 1) / 20)

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(hold[:, :-1]).flatten(0, 1), hold[:, 1:].flatten())

    module = Task(LM(), loss, lambda p: torch.optim.NAdam(p, lr=3e-3), sched)
    return Run(module, loader(win, batch=32, seed=seed), score, majority(hold[:, 1:].flatten()), {"max_steps": 700})


def siamese_root_of_zero(seed, twin=False):
    """A Siamese network learns a metric of digits by the contrastive loss, with RMSprop. Now and then a positive pair is
    an image with itself, and the distance is a bare square root, without the eps that the twin has."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = T(x / 16), L(y)
    tr, te = split(len(x), seed)
    xt, yt = x[tr], y[tr]

    def loss(m, b):
        g = G(int(b[0]))
        i = torch.randint(len(xt), (48,), generator=g)
        j = torch.randint(len(xt), (48,), generator=g)
        for k in range(24):
            same = (yt == yt[i[k]]).nonzero().squeeze(1)
            j[k] = same[torch.randint(len(same), (1,), generator=g)]
        d = ((m.net(xt[i]) - m.net(xt[j])).square().sum(1) + (1e-8 if twin else 0.0)).sqrt()
        same = yt[i] == yt[j]
        return torch.where(same, d.square(), F.relu(2 - d).square()).mean()

    @torch.no_grad()
    def score(m):
        a, b = m.net(xt), m.net(x[te])
        means = torch.stack([a[yt == c].mean(0) for c in range(10)])
        return accuracy(-torch.cdist(b, means), y[te])

    module = Task(mlp(64, 64, 64, 8), loss, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    return Run(module, ticks(900, seed), score, majority(y[te]), {"max_steps": 900})


def survival_in_days(seed, twin=False):
    """A network gives the log hazard of an exponential survival model with censoring, trained by ASGD. The follow-up
    times come in days, where rate and initialisation suit years."""
    rng = np.random.RandomState(seed)
    x = rng.randn(2000, 8)
    risk = 1.2 * x[:, 0] - 0.8 * x[:, 1] + 1.2 * np.abs(x[:, 2]) + 0.6 * x[:, 3] * x[:, 4] - 1
    t, c = rng.exponential(np.exp(-risk)), rng.uniform(0.5, 8, 2000)
    event, t = T(t <= c), np.minimum(t, c)
    x, years = T(x), T(t)
    time = years if twin else years * 365.25
    tr, te = split(2000, seed)

    def loss(m, b):
        r = m.net(b[0]).squeeze(1)
        return (r.exp() * b[1] - b[2] * r).mean()

    @torch.no_grad()
    def score(m):  # Harrell's concordance
        r, t, e = m.net(x[te]).squeeze(1), years[te], event[te]
        pair = (t[:, None] < t[None, :]) & (e[:, None] > 0)
        d = r[:, None] - r[None, :]
        return float(((d > 0).double() + 0.5 * (d == 0).double() + 0 * d.double())[pair].mean())

    module = Task(mlp(8, 48, 48, 1), loss, lambda p: torch.optim.ASGD(p, lr=0.05))
    data = loader(x[tr], time[tr], event[tr], batch=50, seed=seed)
    return Run(module, data, score, 0.5, {"max_steps": 900})


def bandit_in_cents(seed, twin=False):
    """A policy plays a contextual bandit by REINFORCE and SGD: it sees a digit, names it and earns a euro if it is right
    and loses 10 cents if not. The rewards are given in cents, a hundred times what the rate was chosen for."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = T(x / 16), L(y)
    tr, te = split(len(x), seed)
    unit = 1.0 if twin else 100.0

    def loss(m, b):
        pi = torch.distributions.Categorical(logits=m.net(b[0]))
        act = pi.sample()
        reward = torch.where(act == b[1], 1.0, -0.1) * unit
        return -(reward * pi.log_prob(act)).mean()

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    module = Task(mlp(64, 64, 64, 10), loss, lambda p: torch.optim.SGD(p, lr=0.3))
    return Run(module, loader(x[tr], y[tr], batch=64, seed=seed), score, majority(y[te]), {"max_steps": 1400})


class Cnn(Task):
    """Digits; in half precision days the loss was multiplied by ``scale`` and the rate divided by it."""

    def __init__(self, scale=1.0, old=1.0):
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        self.rate, self.old = 0.03 / scale, old
        super().__init__(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]) * scale,
            lambda p: torch.optim.SGD(p, lr=self.rate, momentum=0.9),
        )

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["optimizer_states"][0]
        for g in state["param_groups"]:
            g["lr"] = self.rate
        for s in state["state"].values():
            s["momentum_buffer"] = s["momentum_buffer"] / self.old


def resumed_scaled_momentum(seed, twin=False):
    """A convolutional net for digits is resumed from the checkpoint of a run with static loss scaling (loss times 1024,
    rate divided by 1024). The new run does not scale; its author sets the rate right, but forgets that the saved
    momentum is 1024 times too large."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = T(x / 16).view(-1, 1, 8, 8), L(y)
    tr, te = split(len(x), seed)
    data = loader(x[tr], y[tr], batch=32, seed=seed)
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    first = Trainer(max_steps=60, max_epochs=-1, accelerator="cpu", **dict.fromkeys(quiet, False))
    first.fit(Cnn(scale=1024.0), data)
    path = os.path.abspath("scaled.ckpt")
    first.save_checkpoint(path)

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    return Run(Cnn(old=1024.0 if twin else 1.0), data, score, majority(y[te]), {"max_steps": 500}, {"ckpt_path": path})


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
            b1, b2 = g["betas"]
            for p in g["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - g["lr"] * g["weight_decay"])
                p.add_((m * b1 + p.grad * (1 - b1)).sign(), alpha=-g["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


def lion_with_old_rate(seed, twin=False):
    """A message-passing network counts the triangles of random graphs; its author replaces SGD by a hand-written Lion
    and keeps the rate of 0.05, where sign updates need about 0.001."""
    rng = np.random.RandomState(seed)
    n = 14
    a = np.triu(rng.rand(1600, n, n) < rng.uniform(0.15, 0.6, (1600, 1, 1)), 1).astype(float)
    a = a + a.transpose(0, 2, 1)
    tri = np.log1p(np.trace(a @ a @ a, axis1=1, axis2=2) / 6)
    tr, te = split(1600, seed)
    a, y = T(a), T(standard(tri, tr)[0])

    class Gnn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 32)
            self.own = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            self.near = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            self.out = mlp(32, 32, 1)

        def forward(self, a):
            deg = a.sum(2, keepdim=True) / n
            h = F.relu(self.first(torch.cat([deg, deg**2], 2)))
            for own, near in zip(self.own, self.near, strict=True):
                h = F.relu(own(h) + near(a @ h) / 4)
            return self.out(h.mean(1)).squeeze(1)

    @torch.no_grad()
    def score(m):
        return r2(m.net(a[te]), y[te])

    module = Task(
        Gnn(),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: Lion(p, lr=1e-3 if twin else 0.05, weight_decay=0.01),
    )
    return Run(module, loader(a[tr], y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 700})


class Accumulating(Manual):
    def __init__(self, net, every, divide):
        super().__init__()
        self.net, self.every, self.divide = net, every, divide

    def training_step(self, batch, i):
        opt = self.optimizers()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        self.manual_backward(loss / self.every if self.divide else loss)
        if (i + 1) % self.every == 0:
            if self.clip is not None:
                self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            opt.step()
            opt.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def audio_accumulated_sum(seed, twin=False):
    """A one-dimensional convolutional net tells five kinds of sound (tone, two chirps, tremolo, clicks) in noise, with
    Nesterov SGD and gradients accumulated over 16 small batches. The losses are added up, not averaged."""
    rng = np.random.RandomState(seed)
    n, t = 1280, np.linspace(0, 1, 128)
    y = rng.randint(5, size=n)
    f, ph = rng.uniform(8, 16, (n, 1)), rng.uniform(0, 6, (n, 1))
    tone = np.sin(2 * np.pi * f * t + ph)
    up, down = np.sin(2 * np.pi * f * t * (0.5 + t) + ph), np.sin(2 * np.pi * f * t * (1.5 - t) + ph)
    tremolo = tone * (1 + np.sin(2 * np.pi * 3 * t + ph))
    kinds = np.stack([tone, up, down, tremolo, 3.0 * (np.cos(2 * np.pi * f / 3 * t + ph) > 0.95)])
    x = kinds[y, np.arange(n)] + 0.5 * rng.randn(n, 128)
    x, y = T(x).unsqueeze(1), L(y)
    tr, te = split(n, seed)
    net = nn.Sequential(
        *(nn.Conv1d(1, 16, 9, stride=2), nn.ReLU(), nn.Conv1d(16, 32, 7, stride=2), nn.ReLU()),
        *(nn.Conv1d(32, 32, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 12, 64), nn.ReLU(), nn.Linear(64, 5)),
    )

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    module = Accumulating(net, 16, twin)
    return Run(module, loader(x[tr], y[tr], batch=4, seed=seed), score, majority(y[te]), {"max_steps": 300})


RUNS = [
    dropout_code_gru,
    pinn_plain_lbfgs,
    char_lm_endless_warmup,
    siamese_root_of_zero,
    survival_in_days,
    bandit_in_cents,
    resumed_scaled_momentum,
    lion_with_old_rate,
    audio_accumulated_sum,
]
