"""Ten right training programs which look suspicious."""

import copy
import math
import os
import tempfile

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import Trainer
from sklearn import datasets
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR


@torch.no_grad()
def out(m, *x):
    m.eval()
    return m.net(*x)


def digits(seed):
    x, y = datasets.load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    return T(x / 16.0), L(y), tr, te


def quick(module, train, steps):
    """A short training before the one that counts."""
    t = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    t.fit(module, train)
    return t


def superconvergence(seed):
    """Handwritten digits with a small batch-normalised convolutional network, SGD with momentum and one cycle up to a
    rate of 1: high, but right for this network."""
    x, y, tr, te = digits(seed)
    x = x.view(-1, 1, 8, 8)

    def block(i, o):
        return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    net = nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    m = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lambda o: OneCycleLR(o, max_lr=1.0, total_steps=351),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=64, seed=seed), lambda m: accuracy(out(m, x[te]), y[te]), majority(y[te]),
        {"max_steps": 350},
    )


def one_by_one(seed):
    """Breast cancer, online: batches of one sample, plain SGD at a rate that makes the loss jump between 0 and 5."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)
    x, y = T(x), L(y)
    m = Task(
        mlp(30, 16, 2),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.03),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=1, seed=seed), lambda m: accuracy(out(m, x[te]), y[te]), majority(y[te]),
        {"max_steps": 1200},
    )


class InUnits(nn.Module):
    """Predicts in the targets' own units."""

    def __init__(self, body, mean, sd):
        super().__init__()
        self.body, self.mean, self.sd = body, float(mean), float(sd)

    def forward(self, x):
        return self.mean + self.sd * self.body(x).squeeze(-1)


def prices_with_restarts(seed):
    """Prices of some hundred thousand (generated with Friedman's second problem), squared error in the prices' own
    unit, so that losses are of the order of 1e10 and gradients as large; AdamW under cosine annealing with warm
    restarts, each of which throws the loss up again."""
    x, y = datasets.make_friedman2(1600, noise=50.0, random_state=seed)
    y = 5e4 + 400 * y
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)
    x, y = T(x), T(y)
    m = Task(
        InUnits(mlp(4, 64, 64, 1), y[tr].mean(), y[tr].std()),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.AdamW(p, lr=0.02),
        lambda o: CosineAnnealingWarmRestarts(o, 200),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=32, seed=seed), lambda m: max(-1.0, r2(out(m, x[te]), y[te])), 0.0,
        {"max_steps": 799},
    )


class Unfreezing(Task):
    def on_train_batch_start(self, batch, k):
        self.net[0].requires_grad_(self.global_step >= 250)


def unfreeze_after_head(seed):
    """A network pre-trained on the digits 0 to 4 is fine-tuned on 5 to 9: first only a new head, with the body frozen,
    and from step 250 on all of it."""
    x, y, tr, te = digits(seed)
    x = x.view(-1, 1, 8, 8)
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(),
    )  # fmt: skip

    def make(net, cls, lr):
        return cls(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
        )

    low = tr[(y[tr] < 5).numpy()]
    quick(make(nn.Sequential(body, nn.Linear(32, 5)), Task, 0.05), loader(x[low], y[low], batch=32, seed=seed), 200)
    tr, te = tr[(y[tr] >= 5).numpy()], te[(y[te] >= 5).numpy()]
    m = make(nn.Sequential(body, nn.Linear(32, 5)), Unfreezing, 0.03)
    z = (y - 5).clamp(min=0)
    return Run(
        m, loader(x[tr], z[tr], batch=32, seed=seed), lambda m: accuracy(out(m, x[te]), z[te]), majority(z[te]),
        {"max_steps": 600},
    )


class CharNet(nn.Module):
    def __init__(self, vocab, d=32, h=80):
        super().__init__()
        self.emb, self.rnn, self.head = nn.Embedding(vocab, d), nn.LSTM(d, h, batch_first=True), nn.Linear(h, vocab)

    def forward(self, x):
        return self.head(self.rnn(self.emb(x))[0])


def charlm_resumed(seed):
    """A character language model (LSTM, English prose about scikit-learn's data sets) by RMSprop with clipping,
    resumed at step 100 from a checkpoint on disk, optimizer and all."""
    names = ("digits", "breast_cancer", "wine", "iris", "diabetes", "linnerud")
    text = "\n".join(getattr(datasets, "load_" + n)().DESCR for n in names)
    vocab = {c: k for k, c in enumerate(sorted(set(text)))}
    ids = L([vocab[c] for c in text])
    n = len(ids) // 49
    ids = ids[: n * 49].view(n, 49)
    tr, te = split(n, seed)
    counts = torch.bincount(ids[tr].reshape(-1), minlength=len(vocab)).double() + 1
    unigram = float((counts / counts.sum()).log()[ids[te][:, 1:]].mean().exp())

    def make():
        return Task(
            CharNet(len(vocab)),
            lambda m, b: F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten()),
            lambda p: torch.optim.RMSprop(p, lr=4e-3),
        )

    def score(m):
        return math.exp(-F.cross_entropy(out(m, te_ids[:, :-1]).flatten(0, 1), te_ids[:, 1:].flatten()))

    te_ids = ids[te]
    t = quick(make(), loader(ids[tr], batch=16, seed=seed), 100)
    fd, path = tempfile.mkstemp(suffix=".ckpt")
    os.close(fd)
    t.save_checkpoint(path)
    return Run(
        make(), loader(ids[tr], batch=16, seed=seed + 7), score, unigram,
        {"max_steps": 500, "gradient_clip_val": 1.0}, {"ckpt_path": path},
    )


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(7, 96, 96, 2, act=nn.SiLU)

    def forward(self, x, t):
        t = t.unsqueeze(-1)
        w = torch.cat([torch.sin(math.pi * k * t / 2) for k in (1, 2, 4)] + [1 - t, t], -1)
        return self.body(torch.cat([x, w], -1))


def alpha(t):
    return torch.cos(t * math.pi / 2).unsqueeze(-1), torch.sin(t * math.pi / 2).unsqueeze(-1)


class Diffusion(Task):
    def __init__(self, *a):
        super().__init__(*a)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)

    def configure_optimizers(self):
        return self._opt(self.net.parameters())

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for e, p in zip(self.ema.parameters(), self.net.parameters()):
                e.lerp_(p, 0.01)


def energy(a, b):
    """The energy distance of two samples."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def diffusion_ema(seed):
    """A diffusion model of two moons: the loss is noise about a level, the rate high, and the samples are drawn from a
    moving average of the weights."""
    x, _ = datasets.make_moons(2000, noise=0.05, random_state=seed)
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)
    x = T(x)

    def loss(m, b):
        t = torch.rand(len(b[0]))
        c, s = alpha(t)
        e = torch.randn_like(b[0])
        return F.mse_loss(m.net(c * b[0] + s * e, t), e)

    @torch.no_grad()
    def score(m):
        z = torch.randn(500, 2, generator=G(seed + 5))
        ts = torch.linspace(0.98, 0.02, 50)
        for k in range(len(ts)):
            c, s = alpha(ts[k : k + 1])
            e = m.ema(z, ts[k].expand(len(z)))
            clean = ((z - s * e) / c).clamp(-3, 3)
            c2, s2 = alpha(ts[k + 1 : k + 2]) if k + 1 < len(ts) else (1.0, 0.0)
            z = c2 * clean + s2 * e
        return math.exp(-20 * energy(z, x[te]))

    trivial = math.exp(-20 * energy(torch.randn(500, 2, generator=G(seed)), x[te]))
    m = Diffusion(Noise(), loss, lambda p: torch.optim.Adam(p, lr=5e-3))
    return Run(m, loader(x[tr], batch=128, seed=seed), score, trivial, {"max_steps": 1000})


class GAN(Manual):
    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))
        self.ema = copy.deepcopy(self.g).requires_grad_(False)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.g.parameters(), lr=1e-3, betas=(0.0, 0.99)),
            torch.optim.Adam(self.d.parameters(), lr=2e-3, betas=(0.0, 0.99)),
        )

    def training_step(self, batch, _):
        og, od = self.optimizers()
        real = batch[0].requires_grad_(True)
        fake = self.g(torch.randn(len(real), 4))
        dr = self.d(real)
        gp = torch.autograd.grad(dr.sum(), real, create_graph=True)[0].square().sum(-1).mean()
        ld = F.softplus(-dr).mean() + F.softplus(self.d(fake.detach())).mean() + 0.3 * gp
        self.update(od, ld)
        lg = F.softplus(-self.d(fake)).mean()
        self.update(og, lg)
        with torch.no_grad():
            for e, p in zip(self.ema.parameters(), self.g.parameters()):
                e.lerp_(p, 0.01)
        self.log("loss", lg)


def gan_of_measurements(seed):
    """A generative adversarial network (two optimizers by hand, momentum off, a penalty on the discriminator's
    gradients, a moving average of the generator) of a ring with a blob: neither loss falls, which
    is as it should be."""
    rs = np.random.RandomState(seed)
    th = rs.uniform(0, 2 * np.pi, 2400)
    x = np.stack([np.cos(th), np.sin(th)], 1) * 1.5 + 0.08 * rs.randn(2400, 2)
    x[::4] = 0.15 * rs.randn(600, 2)
    x = T(x)
    tr, te = split(len(x), seed)

    @torch.no_grad()
    def score(m):
        return math.exp(-10 * energy(m.ema(torch.randn(600, 4, generator=G(seed + 3))), x[te]))

    trivial = math.exp(-10 * energy(x[tr].mean(0, keepdim=True), x[te]))  # always the mean
    return Run(GAN(), loader(x[tr].clone(), batch=128, seed=seed), score, trivial, {"max_steps": 1500})


MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
SIDE, GOAL = 7, (6, 6)
WALL = {(3, k) for k in range(6)}


def walk(s, a):
    r, c = divmod(s, SIDE)
    r2_, c2 = r + MOVES[a][0], c + MOVES[a][1]
    if not (0 <= r2_ < SIDE and 0 <= c2 < SIDE) or (r2_, c2) in WALL:
        r2_, c2 = r, c
    return r2_ * SIDE + c2, (r2_, c2) == GOAL


class DQN(Task):
    def __init__(self, *a):
        super().__init__(*a)
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    def configure_optimizers(self):
        return self._opt(self.net.parameters())

    def on_train_batch_start(self, *_):
        if self.global_step % 25 == 0:
            self.target.load_state_dict(self.net.state_dict())


def maze_sparse_reward(seed):
    """Double deep Q-learning from recorded random walks through a maze whose only reward is 100 at the goal; the loss
    is almost zero at first and grows for long while the values spread, with a jump at each change of the target."""
    rs = np.random.RandomState(seed)
    rows = []
    free = [s for s in range(SIDE * SIDE) if divmod(s, SIDE) not in WALL and divmod(s, SIDE) != GOAL]
    while len(rows) < 6000:
        s = free[rs.randint(len(free))]
        for _ in range(40):
            a = rs.randint(4)
            n, end = walk(s, a)
            rows.append((s, a, 100.0 * end, n, float(end)))
            s = n
            if end:
                break
    s, a, r, n, end = (np.array(v) for v in zip(*rows))
    eye = torch.eye(SIDE * SIDE)

    def loss(m, b):
        s, a, r, n, end = b
        q = m.net(eye[s]).gather(1, a.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = m.net(eye[n]).argmax(1, keepdim=True)
            goal = r + 0.95 * (1 - end) * m.target(eye[n]).gather(1, best).squeeze(1)
        return F.mse_loss(q, goal)

    def reached(act):
        won = 0
        for s in free:
            for t in range(20):
                s, end = walk(s, act(s))
                if end:
                    won += 1
                    break
        return won / len(free)

    def score(m):
        best = out(m, eye).argmax(1).tolist()
        return reached(lambda s: best[s])

    m = DQN(mlp(SIDE * SIDE, 64, 4), loss, lambda p: torch.optim.Adam(p, lr=5e-3))
    trivial = float(np.mean([reached(lambda s: rs.randint(4)) for _ in range(10)]))
    return Run(m, loader(L(s), L(a), T(r), L(n), T(end), batch=64, seed=seed), score, trivial, {"max_steps": 1500})


def calibration_density(seed):
    """The calibration of an exact instrument: mean and deviation by the Gaussian likelihood; since the deviations are
    some thousandths the loss goes from positive to about -4, and the gradients grow while the fit gets better."""
    rs = np.random.RandomState(seed)
    x = rs.uniform(-1, 1, (2000, 2))
    sd = 0.003 * np.exp(x[:, 1])
    y = 0.5 * np.sin(3 * x[:, 0]) + 0.3 * x[:, 1] * x[:, 0] + sd * rs.randn(2000)
    tr, te = split(len(x), seed)
    x, y = T(x), T(y)

    def nll(z, y):
        mu, ls = z.unbind(-1)
        return 0.5 * ((y - mu) * (-ls).exp()) ** 2 + ls

    m = Task(
        mlp(2, 64, 64, 2, act=nn.Tanh),
        lambda m, b: nll(m.net(b[0]), b[1]).mean(),
        lambda p: torch.optim.Adam(p, lr=3e-3),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1000),
    )

    def score(m):
        plain = torch.stack([y[tr].mean(), y[tr].std().log()]).expand(len(te), 2)
        gain = float(nll(plain, y[te]).mean())
        gain -= float(nll(out(m, x[te]), y[te]).mean())
        return 1 - math.exp(-gain / 2)

    return Run(m, loader(x[tr], y[tr], batch=64, seed=seed), score, 0.0, {"max_steps": 1000})


def pendulum(n, steps, seed, dt=0.1):
    rs = np.random.RandomState(seed)
    s = np.stack([rs.uniform(-2, 2, n), rs.uniform(-1.5, 1.5, n)], 1)
    path = [s]
    for _ in range(steps):
        for _ in range(10):
            w = s[:, 1] + dt / 10 * (-2 * np.sin(s[:, 0]) - 0.2 * s[:, 1])
            s = np.stack([s[:, 0] + dt / 10 * w, w], 1)
        path.append(s)
    return T(np.stack(path, 1))


def pendulum_curriculum(seed):
    """A network learns a pendulum's equation of motion: for 400 steps from the derivative over a single step, then, for
    good, from paths of 15 steps with the errors summed along the path: another loss, some hundred times as
    large."""
    x = pendulum(800, 15, seed)
    tr, te = split(len(x), seed)

    def rollout(net, s):
        path = []
        for _ in range(15):
            s = s + 0.1 * net(s)
            path.append(s)
        return torch.stack(path, 1)

    def loss(m, b):
        if m.global_step < 400:
            k = int(torch.randint(15, ()))
            return F.mse_loss(b[0][:, k] + 0.1 * m.net(b[0][:, k]), b[0][:, k + 1])
        return ((rollout(m.net, b[0][:, 0]) - b[0][:, 1:]) ** 2).sum((1, 2)).mean()

    def score(m):
        with torch.no_grad():
            return max(-1.0, r2(rollout(m.net, x[te][:, 0]), x[te][:, 1:]))

    still = r2(x[te][:, :1].expand(-1, 15, -1), x[te][:, 1:])
    m = Task(mlp(2, 64, 64, 2, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=2e-3))
    return Run(m, loader(x[tr], batch=32, seed=seed), score, max(0.0, still), {"max_steps": 900})


RUNS = [
    superconvergence,
    one_by_one,
    prices_with_restarts,
    unfreeze_after_head,
    charlm_resumed,
    diffusion_ema,
    gan_of_measurements,
    maze_sparse_reward,
    calibration_density,
    pendulum_curriculum,
]
REGIME = {"unfreeze_after_head", "pendulum_curriculum"}
