"""Ten programs, each with one mistake; ``twin=True`` corrects exactly that."""

import math
import re

import torch
import torch.nn.functional as F
from common import Manual, Run, T, Task, G, L, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn import datasets
from torch import nn


@torch.no_grad()
def evaluated(m, x):
    was = m.net.training
    m.net.eval()
    out = m.net(x)
    m.net.train(was)
    return out


def digits(seed):
    d = datasets.load_digits()
    tr, te = split(len(d.target), seed)
    x, y = T(d.data / 16.0), L(d.target)
    return x[tr], y[tr], x[te], y[te]


# --- 1


def diabetes_target_in_raw_units(seed, twin=False):
    """Diabetes progression by a small MLP with SGD and momentum. The target was left in its raw units (25 to 346) at a
    rate that was chosen for standardised targets."""
    x, y = datasets.load_diabetes(return_X_y=True)
    tr, te = split(len(y), seed)
    x = standard(x, tr)[0]
    if twin:
        y = standard(y, tr)[0]
    x, y = T(x), T(y)[:, None]
    m = Task(
        mlp(10, 32, 32, 1),
        lambda s, b: F.mse_loss(s.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 800),
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: r2(evaluated(m, x[te]), y[te]),
        0.0,
        trainer={"max_steps": 800},
    )


# --- 2


class Lines(nn.Module):
    """Words, one layer of attention under a padding mask, and a pooled head. The first word is a class token."""

    def __init__(self, words, classes, d=32, bare=True):
        super().__init__()
        self.emb, self.qkv, self.out = nn.Embedding(words, d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.cls = nn.Parameter(torch.randn(d) * 0.1)
        self.head, self.bare = mlp(d, 32, classes), bare

    def forward(self, t):
        pad = t == 0
        x = self.emb(t)
        if not self.bare:
            x = torch.cat([self.cls.expand(len(t), 1, -1), x], 1)
            pad = torch.cat([torch.zeros(len(t), 1, dtype=torch.bool), pad], 1)
        q, k, v = self.qkv(x).chunk(3, -1)
        a = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(pad[:, None, :], -math.inf).softmax(-1)
        x = x + self.out(a @ v)
        keep = (~pad).float()[..., None]
        return self.head((x * keep).sum(1) / keep.sum(1).clamp(min=1))


def text_lines_all_masked(seed, twin=False):
    """Which description of a data set is a line of text from? Attention with a padding mask of -inf and AdamW; a few
    empty lines are masked altogether, so that their softmax is NaN (the twin has a class token, never masked)."""
    names = ["iris", "digits", "breast_cancer", "diabetes", "wine", "linnerud"]
    rows, labels, vocab = [], [], {}
    for c, n in enumerate(names):
        words = re.findall(r"[a-z]+", getattr(datasets, "load_" + n)().DESCR.lower())
        for i in range(0, len(words) - 10, 2):
            rows.append([vocab.setdefault(w, len(vocab) + 1) for w in words[i : i + 10]])
            labels.append(c)
    t, y = torch.tensor(rows), torch.tensor(labels)
    tr, te = split(len(t), seed)
    g = G(seed + 7)
    lengths = torch.randint(4, 11, (len(t), 1), generator=g)
    t = t * (torch.arange(10)[None] < lengths)
    empty = torch.rand(len(tr), generator=g) < 0.012
    train = t[tr].clone()
    train[empty] = 0
    m = Task(
        Lines(len(vocab) + 1, len(names), bare=not twin),
        lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
        lambda p: torch.optim.AdamW(p, lr=2e-3),
    )
    return Run(
        m,
        loader(train, y[tr], batch=16, seed=seed),
        lambda m: accuracy(evaluated(m, t[te]), y[te]),
        majority(y[te]),
        trainer={"max_steps": 600},
    )


# --- 3


class Rows(nn.Module):
    """The rows of a small picture, or the frames of a sound, as the tokens of a transformer."""

    def __init__(self, n, w, d, layers, classes, first=False):
        super().__init__()
        self.n, self.w = n, w
        self.inp, self.pos = nn.Linear(w, d), nn.Parameter(torch.randn(n, d) * 0.1)
        self.body = nn.Sequential(
            *[
                nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=first)
                for _ in range(layers)
            ]
        )
        self.head = nn.Linear(d, classes)

    def forward(self, x):
        return self.head(self.body(self.inp(x.reshape(-1, self.n, self.w)) + self.pos).mean(1))


def digits_resumed_without_scheduler(seed, twin=False):
    """A transformer on the digits, trained with the warm-up and inverse square root schedule that multiplies a base
    rate, saved at step 200 and resumed. The scheduler was not built again at the resumption, so that Adam runs at the
    bare base rate."""
    x, y, xt, yt = digits(seed)
    net = Rows(8, 8, 32, 2, 10)
    base = 32**-0.5

    def factor(i):
        return min((i + 1) ** -0.5, (i + 1) * 100**-1.5) * 0.4

    opt = torch.optim.Adam(net.parameters(), lr=base, betas=(0.9, 0.98))
    g = G(seed + 5)
    for i in range(200):
        for p in opt.param_groups:
            p["lr"] = base * factor(i)
        j = torch.randint(len(x), (32,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[j]), y[j]).backward()
        opt.step()
    state = opt.state_dict()

    def optimizer(p):
        o = torch.optim.Adam(p, lr=base, betas=(0.9, 0.98))
        o.load_state_dict(state)
        for group in o.param_groups:
            group["lr"] = base
            group.pop("initial_lr", None)
        return o

    m = Task(
        net,
        lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
        optimizer,
        (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: factor(200 + i))) if twin else None,
    )
    return Run(
        m,
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(evaluated(m, xt), yt),
        majority(yt),
        trainer={"max_steps": 350},
    )


# --- 4


def pinn_lbfgs_without_line_search(seed, twin=False):
    """A physics-informed network for a damped oscillator, by LBFGS with new collocation points for every step. The
    strong Wolfe line search was forgotten, so that LBFGS takes its raw steps."""
    w, c, n = 8.0, 0.6, 96

    def true(t):
        k = math.sqrt(w * w - c * c)
        return torch.exp(-c * t) * (torch.cos(k * t) + c / k * torch.sin(k * t))

    def loss(s, b):
        t = (torch.arange(n)[:, None] + torch.rand(n, 1, generator=G(int(b[0][0])))) * (2 / n)
        t.requires_grad_(True)
        with torch.enable_grad():
            u = s.net(t)
            du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
            ddu = torch.autograd.grad(du.sum(), t, create_graph=True)[0]
            z = torch.zeros(1, 1, requires_grad=True)
            u0 = s.net(z)
            d0 = torch.autograd.grad(u0.sum(), z, create_graph=True)[0]
            pde = ((ddu + 2 * c * du + w * w * u) / w**2).square().mean()
            return pde + 5 * (u0 - 1).square().mean() + (d0 / w).square().mean()

    m = Task(
        mlp(1, 24, 24, 1, act=nn.Tanh),
        loss,
        lambda p: torch.optim.LBFGS(
            p, lr=1.0, max_iter=5, history_size=20, line_search_fn="strong_wolfe" if twin else None
        ),
    )
    t = torch.linspace(0, 2, 200)[:, None]
    return Run(m, ticks(1000, seed), lambda m: r2(evaluated(m, t), true(t)), 0.0, trainer={"max_steps": 280})


# --- 5


class Factors(nn.Module):
    def __init__(self, users, items, d):
        super().__init__()
        self.u, self.i = nn.Embedding(users, d), nn.Embedding(items, d)
        self.bu, self.bi = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for e in (self.u, self.i, self.bu, self.bi):
            nn.init.normal_(e.weight, std=0.1)

    def forward(self, t):
        u, i = t[:, 0], t[:, 1]
        return (self.u(u) * self.i(i)).sum(-1) + self.bu(u)[:, 0] + self.bi(i)[:, 0]


class Recommender(Manual):
    def __init__(self, net, zero):
        super().__init__()
        self.net, self.zero = net, zero

    def training_step(self, batch, i):
        opt = self.optimizers()
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        if self.zero:
            opt.zero_grad()
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=5.0)


def ratings_zero_grad_forgotten(seed, twin=False):
    """Matrix factorisation of ratings with SGD in manual optimisation. The call of ``zero_grad`` was forgotten, so that
    every step takes the sum of all gradients so far."""
    g = G(seed + 11)
    users, items = 150, 100
    a, b = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    full = (a @ b.T) / 1.7 + 0.5 * torch.randn(users, 1, generator=g) + 0.5 * torch.randn(1, items, generator=g)
    full = full + 0.2 * torch.randn(users, items, generator=g)
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    y = full.reshape(-1)
    tr, te = split(len(y), seed, 0.6)
    return Run(
        Recommender(Factors(users, items, 6), zero=twin),
        loader(pairs[tr], y[tr], batch=256, seed=seed),
        lambda m: r2(evaluated(m, pairs[te]), y[te]),
        0.0,
        trainer={"max_steps": 1000},
    )


# --- 6


def sounds(n, seed):
    """Short sounds of eight kinds (pitch, rising or falling, trembling) in noise, as logarithmic spectra by frame."""
    g = G(seed)
    y = torch.randint(8, (n,), generator=g)
    t = torch.linspace(0, 1, 512)[None]
    f = 25 + 45 * (y % 2)[:, None] + 10 * torch.rand(n, 1, generator=g)
    slope = 25.0 * ((y // 2) % 2 * 2 - 1)[:, None]
    phase = 2 * math.pi * (f * t + slope * t * t / 2 + torch.rand(n, 1, generator=g))
    tremble = torch.where((y // 4)[:, None] == 1, 0.55 + 0.45 * torch.sin(2 * math.pi * 6 * t), torch.tensor(1.0))
    wave = torch.sin(phase) * tremble + 0.3 * torch.randn(n, 512, generator=g)
    spec = torch.fft.rfft(wave.reshape(n, 16, 32) * torch.hann_window(32)).abs()[..., 1:]
    return torch.log(spec + 1e-3), y


def sounds_warm_up_forgotten(seed, twin=False):
    """Classification of sounds by a transformer of six layers with the norm behind, by Adam. Its warm-up was forgotten,
    the full rate holds from the first step."""
    x, y = sounds(1200, seed + 20)
    xt, yt = sounds(500, seed + 40)
    m = Task(
        Rows(16, 16, 32, 6, 8),
        lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
        lambda p: torch.optim.Adam(p, lr=2e-2),
        lambda o: torch.optim.lr_scheduler.LambdaLR(
            o, lambda i: (min(1.0, (i + 1) / 150) if twin else 1.0) * max(0.02, 1 - i / 300)
        ),
    )
    return Run(
        m,
        loader(x, y, batch=16, seed=seed),
        lambda m: accuracy(evaluated(m, xt), yt),
        majority(yt),
        trainer={"max_steps": 300},
    )


# --- 7


def half_adam_epsilon(seed, twin=False):
    """An autoencoder of the digits with weights and Adam's state in half precision. Adam's epsilon was left at 1e-8,
    which is zero in half precision, so that small second moments divide by zero."""
    x, _, xt, _ = digits(seed)
    x, xt = x.half(), xt.half()
    m = Task(
        mlp(64, 48, 12, 48, 64).half(),
        lambda s, b: F.mse_loss(s.net(b[0]).float(), b[0].float()) * 16,
        lambda p: torch.optim.Adam(p, lr=2e-3, eps=1e-4 if twin else 1e-8),
    )
    mean = x.float().mean(0)
    return Run(
        m,
        loader(x, batch=64, seed=seed),
        lambda m: r2(evaluated(m, xt).float() - mean, xt.float() - mean),
        0.0,
        trainer={"max_steps": 800},
    )


# --- 8


class Poles:
    """Many poles on carts at once; the usual constants."""

    def __init__(self, n, seed):
        self.n, self.g = n, G(seed)
        self.s = self.fresh(n)
        self.age = torch.zeros(n)

    def fresh(self, n):
        return (torch.rand(n, 4, generator=self.g) - 0.5) * 0.1

    def step(self, a):
        x, v, th, om = self.s.unbind(-1)
        f = (a.float() * 2 - 1) * 10
        c, s = th.cos(), th.sin()
        tmp = (f + 0.05 * om * om * s) / 1.1
        acc = (9.8 * s - c * tmp) / (0.5 * (4 / 3 - 0.1 * c * c / 1.1))
        xa = tmp - 0.05 * acc * c / 1.1
        self.s = torch.stack([x + 0.02 * v, v + 0.02 * xa, th + 0.02 * om, om + 0.02 * acc], -1)
        self.age += 1
        fell = (self.s[:, 0].abs() > 2.4) | (self.s[:, 2].abs() > 0.2095)
        end = fell | (self.age >= 200)
        self.s = torch.where(end[:, None], self.fresh(self.n), self.s)
        self.age = torch.where(end, torch.zeros(self.n), self.age)
        return fell, end


class ActorCritic(Manual):
    def __init__(self, seed, normalise):
        super().__init__()
        self.actor, self.critic = mlp(4, 32, 2, act=nn.Tanh), mlp(4, 32, 1, act=nn.Tanh)
        self.env, self.normalise, self.g = Poles(32, seed + 60), normalise, G(seed + 61)

    def training_step(self, batch, _):
        oa, oc = self.optimizers()
        obs, act, fall, ends = [], [], [], []
        scale = torch.tensor([1.0, 1.0, 5.0, 1.0])
        with torch.no_grad():
            for _ in range(32):
                o = self.env.s * scale
                p = self.actor(o).softmax(-1)[:, 1]
                a = (torch.rand(32, generator=self.g) < p).long()
                fell, end = self.env.step(a)
                obs.append(o), act.append(a), fall.append(fell), ends.append(end)
            r = self.critic(self.env.s * scale)[:, 0] * 10
            returns = []
            for fell, end in zip(reversed(fall), reversed(ends)):
                r = 1.0 + 0.98 * torch.where(end, torch.where(fell, torch.zeros(32), torch.full((32,), 30.0)), r)
                returns.append(r)
            ret = torch.stack(returns[::-1]).reshape(-1)
        obs, act = torch.cat(obs), torch.cat(act)
        v = self.critic(obs)[:, 0]
        self.update(oc, F.mse_loss(v, ret / 10))
        adv = ret - v.detach() * 10
        if self.normalise:
            adv = (adv - adv.mean()) / (adv.std() + 1e-6)
        logp = F.log_softmax(self.actor(obs), -1)
        self.update(oa, -(logp.gather(1, act[:, None])[:, 0] * adv).mean() + 0.01 * (logp.exp() * logp).sum(-1).mean())

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.actor.parameters(), lr=2.0, momentum=0.9),
            torch.optim.Adam(self.critic.parameters(), lr=5e-3),
        )


@torch.no_grad()
def balance(actor, seed, n=64):
    env, alive, total = Poles(n, seed), torch.ones(n, dtype=torch.bool), 0.0
    for _ in range(200):
        z = actor(env.s * torch.tensor([1.0, 1.0, 5.0, 1.0]))
        if not torch.isfinite(z).all():
            return float("nan")
        fell, end = env.step(z.argmax(-1))
        total += float(alive.sum())
        alive &= ~end
    return total / n


def poles_raw_advantages(seed, twin=False):
    """Actor and critic (two optimizers, SGD with momentum for the actor) balance poles on carts. The advantages go into
    the policy's gradient raw, in units of the return, although the rate was chosen for normalised ones."""
    return Run(
        ActorCritic(seed, twin),
        ticks(2000, seed),
        lambda m: balance(m.actor, seed + 77),
        22.0,
        trainer={"max_steps": 500},
    )


# --- 9


def power_relative_error_of_zero(seed, twin=False):
    """Forecast of a noisy seasonal exchange of power (which changes its sign, measured in steps of 0.01) from the last
    24 hours, by RMSprop on the mean relative error. Now and then the truth is exactly zero and the loss divides by it
    (the twin bounds the denominator from below)."""
    g = G(seed + 30)
    n = 2400
    t = torch.arange(n).float()
    day, week = torch.sin(2 * math.pi * t / 24), torch.sin(2 * math.pi * t / 168)
    noise = torch.randn(n, generator=g) * (0.08 + 0.2 * (day > 0.3).float())
    z = ((1.2 * day + 0.6 * week + 0.4 * torch.sin(4 * math.pi * t / 24) + noise) * 100).round() / 100
    x = z.unfold(0, 24, 1)[:-1]
    y = z[24:][:, None]

    def loss(s, b):
        scale = b[1].abs().clamp(min=0.2) if twin else b[1].abs()
        return ((s.net(b[0]) - b[1]).abs() / scale).mean()

    k = 1800
    m = Task(mlp(24, 48, 48, 1), loss, lambda p: torch.optim.RMSprop(p, lr=1e-3))
    return Run(
        m,
        loader(x[:k], y[:k], batch=16, seed=seed),
        lambda m: r2(evaluated(m, x[k:]), y[k:]),
        0.0,
        trainer={"max_steps": 900},
    )


# --- 10


class Conv(nn.Module):
    def __init__(self, classes, width=16):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x):
        return self.head(self.body(x.reshape(-1, 1, 8, 8)))


def digits_backbone_not_frozen(seed, twin=False):
    """A convolutional network trained on the digits 0 to 4 gets a new head for 5 to 9, with SGD and Nesterov's momentum
    at a rate for a linear head alone. The freezing of the trained backbone was forgotten."""
    x, y, xt, yt = digits(seed)
    net = Conv(5)
    old, new, newt = y < 5, y >= 5, yt >= 5
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    g = G(seed + 5)
    for _ in range(250):
        j = torch.randint(int(old.sum()), (32,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[old][j]), y[old][j]).backward()
        opt.step()
    net.head = nn.Linear(128, 5)
    if twin:
        for p in net.body.parameters():
            p.requires_grad_(False)
    m = Task(
        net,
        lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
        lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.3, momentum=0.9, nesterov=True),
    )
    yn, ytn = y[new] - 5, yt[newt] - 5
    return Run(
        m,
        loader(x[new], yn, batch=32, seed=seed),
        lambda m: accuracy(evaluated(m, xt[newt]), ytn),
        majority(ytn),
        trainer={"max_steps": 800},
    )


RUNS = [
    diabetes_target_in_raw_units,
    text_lines_all_masked,
    digits_resumed_without_scheduler,
    pinn_lbfgs_without_line_search,
    ratings_zero_grad_forgotten,
    sounds_warm_up_forgotten,
    half_adam_epsilon,
    poles_raw_advantages,
    power_relative_error_of_zero,
    digits_backbone_not_frozen,
]
