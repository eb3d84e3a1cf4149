"""Ten training runs that train well as they are, though something about each looks alarming."""

import math

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, ticks
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits, make_friedman1
from torch import nn
from torch.nn import functional as F


def predict(m, x):
    m.eval()
    with torch.no_grad():
        return m.net(x)


def digits(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    return T(x / 16.0), L(y), tr, te


class Scaled(nn.Module):
    def __init__(self, net, unit):
        super().__init__()
        self.net, self.unit = net, unit

    def forward(self, x):
        return self.unit * self.net(x).squeeze(-1)


def prices_in_dollars(seed):
    """Prices of about 1.4 million dollars as they come: losses near 1e12, Adam, batches of 8 accumulated by four."""
    x, y = make_friedman1(1600, 8, noise=0.5, random_state=seed)
    tr, te = split(len(x), seed)
    x, y = T(x), T(y * 1e5)
    module = Task(
        Scaled(mlp(8, 64, 32, 1), 1e5),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    return Run(
        module,
        loader(x[tr], y[tr], batch=8, seed=seed),
        lambda m: r2(predict(m, x[te]), y[te]),
        0.0,
        {"max_steps": 450, "accumulate_grad_batches": 4},
    )


def ring(n, seed):
    g = G(seed)
    k = torch.randint(6, (n,), generator=g) * (2 * math.pi / 6)
    return torch.stack([k.cos(), k.sin()], -1) * 1.5 + 0.12 * torch.randn(n, 2, generator=g)


def sliced(a, b, seed=7):
    d = F.normalize(torch.randn(2, 60, generator=G(seed)), dim=0)
    return float(((a @ d).sort(0).values - (b @ d).sort(0).values).abs().mean())


class WassersteinGan(Manual):
    def __init__(self):
        super().__init__()
        self.gen, self.critic = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.gen.parameters(), lr=3e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=4e-3, betas=(0.5, 0.9)),
        )

    def training_step(self, batch, i):
        og, oc = self.optimizers()
        real = batch[0]
        fake = self.gen(torch.randn(len(real), 4))
        mix = torch.rand(len(real), 1)
        mid = (mix * real + (1 - mix) * fake.detach()).requires_grad_()
        slope = torch.autograd.grad(self.critic(mid).sum(), mid, create_graph=True)[0].norm(dim=-1)
        gap = self.critic(fake.detach()).mean() - self.critic(real).mean()
        loss = gap + 2 * ((slope - 1) ** 2).mean()
        self.log("loss", loss)
        self.update(oc, loss)
        if i % 2 == 1:
            self.update(og, -self.critic(fake).mean())


def wasserstein_ring(seed):
    """A Wasserstein GAN with gradient penalty on six clusters: two optimizers, losses of either sign."""
    real = ring(2000, seed + 91)
    train = ring(4096, seed + 90)

    def score(m):
        m.eval()
        with torch.no_grad():
            return -sliced(m.gen(torch.randn(2000, 4, generator=G(3))), real)

    normal = train.mean(0) + torch.randn(2000, 2, generator=G(4)) * train.std(0)
    return Run(WassersteinGan(), loader(train, batch=96, seed=seed), score, -sliced(normal, real), {"max_steps": 900})


def warm_restarts(seed):
    """SGD with Nesterov momentum and cosine warm restarts to a rate of 0.25: the loss jumps at every restart."""
    x, y, tr, te = digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    x = x.reshape(-1, 8, 8)
    module = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], label_smoothing=0.05),
        lambda p: torch.optim.SGD(p, lr=0.25, momentum=0.9, nesterov=True, weight_decay=1e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 40, 2),
    )
    return Run(
        module,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 600},
    )


def one_by_one_heavy_tails(seed):
    """Online learning, one example a step, with Student-t noise (2.2 degrees of freedom): rare huge losses."""
    rs = np.random.RandomState(seed + 11)
    w = rs.randn(6) * 1.5
    x = rs.randn(1900, 6)
    clean = x @ w + 2 * np.sin(2 * x[:, 0])
    y = clean + 0.8 * rs.standard_t(2.2, len(x))
    x, y, clean = T(x), T(y), T(clean)
    module = Task(
        Scaled(mlp(6, 32, 1), 1.0),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.01),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: max(0.0, 1 - s / 900)),
    )
    return Run(
        module,
        loader(x[:900], y[:900], batch=1, seed=seed),
        lambda m: r2(predict(m, x[900:]), clean[900:]),
        0.0,
        {"max_steps": 900},
    )


class SkipGram(nn.Module):
    def __init__(self, n, d=12):
        super().__init__()
        self.u, self.v = nn.Embedding(n, d, sparse=True), nn.Embedding(n, d, sparse=True)
        nn.init.normal_(self.u.weight, std=0.1)
        nn.init.normal_(self.v.weight, std=0.1)

    def forward(self, a, b):
        return (self.u(a) * self.v(b)).sum(-1)


def sparse_skipgram(seed):
    """Word vectors by negative sampling: sparse gradients, SparseAdam, words of Zipf frequency, most rows untouched."""
    n, topics, g = 400, 10, G(seed + 12)
    freq = 1 / (torch.arange(n) // topics + 3.0)
    member = torch.arange(n) % topics

    def pairs(k):
        a = torch.multinomial(freq, k, replacement=True, generator=g)
        b = torch.empty_like(a)
        for t in range(topics):
            i = (member[a] == t).nonzero()[:, 0]
            b[i] = torch.multinomial(freq * (member == t), len(i), replacement=True, generator=g)
        noise = torch.multinomial(freq, k, replacement=True, generator=g)
        return a, torch.where(torch.rand(k, generator=g) < 0.1, noise, b)

    def negatives(k):
        return torch.multinomial(freq, k, replacement=True, generator=g)

    a, b = pairs(500 * 64)
    neg = negatives(len(a) * 4).reshape(-1, 4)
    ta, tb = pairs(3000)
    tn = negatives(3000)

    def loss(m, batch):
        p, q, r = batch
        return -F.logsigmoid(m.net(p, q)).mean() - F.logsigmoid(-m.net(p[:, None], r)).sum(-1).mean()

    def score(m):
        with torch.no_grad():
            good, bad = m.net(ta, tb), m.net(ta, tn)
        return float((good > bad).double().mean())

    module = Task(SkipGram(n), loss, lambda p: torch.optim.SparseAdam(list(p), lr=0.02))
    return Run(module, loader(a, b, neg, batch=64, seed=seed), score, 0.5, {"max_steps": 500})


SIZE, HORIZON = 7, 16
MOVES = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])


def episodes(policy, n, g, greedy=False):
    """Episodes of a grid whose far corner alone gives a reward of 1; an episode ends there or at the horizon."""
    pos = torch.randint(0, 3, (n, 2), generator=g)
    done = torch.zeros(n, dtype=torch.bool)
    seen, acts, alive = [], [], []
    for _ in range(HORIZON):
        with torch.no_grad():
            logits = policy(F.one_hot(pos, SIZE).flatten(1).float())
            p = logits.softmax(-1)
            a = p.argmax(-1) if greedy else torch.multinomial(p, 1, generator=g)[:, 0]
        seen.append(F.one_hot(pos, SIZE).flatten(1).float())
        acts.append(a)
        alive.append(~done)
        pos = torch.where(done[:, None], pos, (pos + MOVES[a]).clamp(0, SIZE - 1))
        done = done | (pos == SIZE - 1).all(-1)
    return torch.cat(seen), torch.cat(acts), torch.cat(alive), done.float()


class Reinforce(Task):
    def __init__(self):
        super().__init__(mlp(2 * SIZE, 32, 4, act=nn.Tanh), None, lambda p: torch.optim.Adam(p, lr=1e-2))
        self.register_buffer("base", torch.zeros(()))

    def training_step(self, batch, _):
        s, a, alive, reward = episodes(self.net, 24, G(int(batch[0])))
        adv = (reward - self.base).repeat(HORIZON) * alive
        self.base.mul_(0.9).add_(0.1 * reward.mean())
        logp = self.net(s).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1).mean()
        loss = -(adv * logp.gather(1, a[:, None])[:, 0]).sum() / 24 - 0.003 * entropy
        self.log("loss", loss)
        return loss


def sparse_reward_grid(seed):
    """REINFORCE where a random walk seldom finds the reward: batches without any signal, then bursts of both signs."""

    def success(net):
        return float(episodes(net, 600, G(seed + 5000))[3].mean())

    def score(m):
        m.eval()
        return success(m.net)

    trivial = success(lambda s: torch.zeros(len(s), 4))
    return Run(Reinforce(), ticks(500, seed), score, trivial, {"max_steps": 500})


class Adder(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, d, batch_first=True), nn.Linear(d, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1]).squeeze(-1)


def marked_sums(n, length, g):
    v = torch.rand(n, length, generator=g) * 4 - 1
    m = (torch.rand(n, length, generator=g) < 0.5).float()
    return torch.stack([v, m], -1), (v * m).sum(-1)


class Lengthening(Task):
    def training_step(self, batch, _):
        length = (4, 8, 16, 24)[min(3, self.global_step // 150)]
        x, y = marked_sums(32, length, G(int(batch[0])))
        loss = F.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss


def lengthening_sums(seed):
    """A curriculum: a GRU adds up marked numbers in sequences of 4, 8, 16, then 24; the loss leaps at each stage."""
    x, y = marked_sums(800, 24, G(seed + 77))
    module = Lengthening(Adder(), None, lambda p: torch.optim.Adam(p, lr=5e-3))
    return Run(module, ticks(650, seed), lambda m: r2(predict(m, x), y), 0.0, {"max_steps": 650})


class PretrainThenClassify(LightningModule):
    """Denoising for 250 steps; then the new head alone for 80; then all of it, by a rate ten times lower below."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = mlp(64, 96, 32), mlp(32, 96, 64)
        self.head = nn.Linear(32, 10)

    def net(self, x):
        return self.head(self.enc(x))

    def training_step(self, batch, _):
        x, y = batch
        step = self.global_step
        self.enc.requires_grad_(not 250 <= step < 330)
        if step < 250:
            loss = 0.5 * ((self.dec(self.enc(x + 0.2 * torch.randn_like(x))) - x) ** 2).sum(-1).mean()
        else:
            for group, rate in zip(self.optimizers().param_groups, (2e-4, 1e-2), strict=True):
                group["lr"] = rate
            loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        rest = [*self.dec.parameters(), *self.head.parameters()]
        return torch.optim.AdamW([{"params": self.enc.parameters()}, {"params": rest}], lr=3e-3)


def pretrain_then_classify(seed):
    """A denoising autoencoder becomes a classifier in one fit: loss switched, encoder frozen and thawed, new rates."""
    x, y, tr, te = digits(seed)
    return Run(
        PretrainThenClassify(),
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 600},
    )


class Weighted(Task):
    def __init__(self, net, opt):
        super().__init__(net, None, opt)
        self.log_var = nn.Parameter(torch.zeros(3))

    def training_step(self, batch, _):
        err = ((self.net(batch[0]) - batch[1]) ** 2).mean(0)
        loss = (0.5 * (-self.log_var).exp() * err + 0.5 * self.log_var).sum()
        self.log("loss", loss)
        return loss


def learned_task_weights(seed):
    """Three regressions weighed by learned log-variances: the loss falls through zero and far below as weights grow."""
    rs = np.random.RandomState(seed + 13)
    x = rs.uniform(-1.5, 1.5, (2400, 5))
    y = np.stack(
        [0.3 * np.sin(2 * x[:, 0]) * x[:, 1], x[:, 2] ** 2 - x[:, 3], 3 * x[:, 4] + np.abs(x[:, 0]) * x[:, 2]], -1
    )
    y = y + rs.randn(*y.shape) * np.array([0.005, 0.1, 0.8])
    tr, te = split(len(x), seed)
    x, y = T(x), T(y)

    def score(m):
        p = predict(m, x[te])
        return min(r2(p[:, k], y[te][:, k]) for k in range(3))

    module = Weighted(mlp(5, 64, 64, 3, act=nn.SiLU), lambda p: torch.optim.NAdam(p, lr=4e-3))
    return Run(module, loader(x[tr], y[tr], batch=64, seed=seed), score, 0.0, {"max_steps": 800})


class Poisson(Task):
    """u'' = f on [-1, 1] with u = 0 at both ends, by a physics-informed network."""

    def training_step(self, batch, _):
        x = torch.linspace(-1, 1, 64)[:, None].requires_grad_()
        u = self.net(x)
        du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        ddu = torch.autograd.grad(du.sum(), x, create_graph=True)[0]
        res = ddu[:, 0] - self.source(x[:, 0])
        loss = (res**2).mean() + 100 * (u[0] ** 2 + u[-1] ** 2).sum()
        self.log("loss", loss)
        return loss


def lbfgs_poisson(seed):
    """A physics-informed network by LBFGS with line search: several closures a step, losses from 1e3 down, plateaus."""
    k, c = (2, 3)[seed % 2], 0.5

    def exact(x):
        return torch.sin(k * math.pi * x) + c * torch.sin(math.pi * x)

    def source(x):
        w = math.pi
        return -((k * w) ** 2) * torch.sin(k * w * x) - c * w**2 * torch.sin(w * x)

    module = Poisson(
        mlp(1, 24, 24, 1, act=nn.Tanh),
        None,
        lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=4, history_size=20, line_search_fn="strong_wolfe"),
    )
    module.source = source
    g = torch.linspace(-0.99, 0.99, 301)
    return Run(module, ticks(250, seed), lambda m: r2(predict(m, g[:, None]), exact(g)), 0.0, {"max_steps": 250})


REGIME = {"lengthening_sums", "pretrain_then_classify"}
RUNS = [
    prices_in_dollars,
    wasserstein_ring,
    warm_restarts,
    one_by_one_heavy_tails,
    sparse_skipgram,
    sparse_reward_grid,
    lengthening_sums,
    pretrain_then_classify,
    learned_task_weights,
    lbfgs_poisson,
]
