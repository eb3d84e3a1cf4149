"""Healthy runs: nothing is wrong with them, though some look alarming."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sick import digits, drive, drive_score, out, ratings, returns, sentences
from sklearn import datasets
from torch import nn


def raw_disease_scores(seed):
    """Diabetes with raw targets of 25 to 346 and Adagrad at a large rate; the squared error starts at some 29000 and
    stays in the thousands, and its gradients are as large, which is right."""
    d = datasets.load_diabetes()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), T(d.target)
    net = mlp(10, 32, 1)
    return Run(
        Task(
            net,
            lambda m, b: F.mse_loss(m.net(b[0]).squeeze(1), b[1]),
            lambda p: torch.optim.Adagrad(p, lr=0.5),
        ),
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: r2(out(m.net, x[te]), y[te]),
        0.0,
        {"max_steps": 1000},
    )


def wine_one_by_one(seed):
    """Wine by plain SGD with a batch of one and dropout: the loss jumps from step to step by orders of magnitude."""
    d = datasets.load_wine()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3))
    return Run(
        Task(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.SGD(p, lr=0.03)),
        loader(x[tr], y[tr], batch=1, seed=seed),
        lambda m: accuracy(out(m.net, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 1300},
    )


def warm_restarts(seed):
    """A convolutional net with batch norm on digits, SGD with Nesterov momentum and cosine warm restarts up to a rate
    of 0.3, with accumulation over two batches."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return Run(
        Task(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True, weight_decay=5e-4),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 60, 2, eta_min=1e-3),
        ),
        loader(x, y, batch=16, seed=seed),
        lambda m: accuracy(out(m.net, xt), yt),
        majority(yt),
        {"max_steps": 420, "accumulate_grad_batches": 2},
    )


def negative_likelihood(seed):
    """A network of mean and variance (physics: a damped pendulum with noise that differs along the way) by Adam with
    the author's own clipping: the Gaussian likelihood loss passes 0 and gets negative, with spikes."""
    rng = np.random.RandomState(seed)
    t = rng.rand(3000) * 10
    sd = 0.01 + 0.1 * (t > 6)
    y = np.exp(-0.15 * t) * np.cos(2 * t) + sd * rng.randn(3000)
    x, y = T(np.stack([t / 5 - 1, np.sin(t), np.cos(t)], 1)), T(y)

    def loss(m, b):
        mu, ls = m.net(b[0]).unbind(1)
        return (ls + 0.5 * ((b[1] - mu) * (-ls).exp()) ** 2).mean()

    return Run(
        Task(mlp(3, 48, 48, 2, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=3e-3)),
        loader(x[:2400], y[:2400], batch=32, seed=seed),
        lambda m: r2(out(m.net, x[2400:])[:, 0], y[2400:]),
        0.0,
        {"max_steps": 1200, "gradient_clip_val": 5.0},
    )


def heavy_tailed_ratings(seed):
    """Recommendation with 3% of the ratings far off (Student's t with 1.5 degrees of freedom), embedding factors,
    squared error, plain SGD: single batches have a loss a hundred times the usual."""
    i, j, r = ratings(seed)
    k = 3200
    rng = np.random.RandomState(seed + 5)
    noisy = r.clone()
    far = torch.as_tensor(rng.rand(k) < 0.03)
    noisy[:k][far] += T(np.clip(rng.standard_t(1.5, size=int(far.sum())), -40, 40))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.v = nn.Embedding(80, 4), nn.Embedding(60, 4)
            self.bu, self.bv = nn.Embedding(80, 1), nn.Embedding(60, 1)
            for e, s in ((self.u, 0.3), (self.v, 0.3), (self.bu, 0.0), (self.bv, 0.0)):
                nn.init.normal_(e.weight, std=s)

        def forward(self, i, j):
            return (self.u(i) * self.v(j)).sum(1) + self.bu(i).squeeze(1) + self.bv(j).squeeze(1)

    return Run(
        Task(Net(), lambda m, b: F.mse_loss(m.net(b[0], b[1]), b[2]), lambda p: torch.optim.SGD(p, lr=0.7)),
        loader(i[:k], j[:k], noisy[:k], batch=64, seed=seed),
        lambda m: r2(m.net(i[k:], j[k:]).detach(), r[k:]),
        0.0,
        {"max_steps": 1200},
    )


class Unfreeze(Task):
    """Trains the head alone, and from ``at`` on the body too."""

    def __init__(self, net, loss, opt, at):
        super().__init__(net, loss, opt)
        self.at = at
        net[0].requires_grad_(False)

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == self.at:
            self.net[0].requires_grad_(True)


def unfrozen_body(seed):
    """A body trained on the digits 0 to 4 gets a new head for all ten; the head is trained alone with RMSprop for 300
    steps, then the body is unfrozen for good."""
    torch.manual_seed(seed)
    x, y, xt, yt = digits(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 24), nn.ReLU())
    old = nn.Sequential(body, nn.Linear(24, 5))
    opt = torch.optim.Adam(old.parameters(), lr=3e-3)
    for e in range(8):
        for xb, yb in loader(x[y < 5], y[y < 5], batch=32, seed=seed + 20 + e):
            opt.zero_grad()
            F.cross_entropy(old(xb), yb).backward()
            opt.step()
    net = nn.Sequential(body, nn.Linear(24, 10))
    return Run(
        Unfreeze(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.RMSprop(p, lr=2e-3, momentum=0.5),
            300,
        ),
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(out(m.net, xt), yt),
        majority(yt),
        {"max_steps": 1200},
    )


def reward_gets_larger(seed):
    """Policy gradient for carts that are to be brought to 0, and from step 250 on every reward counts
    eight times (a new reward scale on purpose). The loss changes its sign all the time."""

    def loss(m, b):
        s, a, r = drive(m.net, G(int(b[0])))
        ret = returns(r * (8.0 if m.global_step >= 250 else 1.0))
        adv = ret - ret.mean(1, keepdim=True)
        lp = m.net(s).log_softmax(-1)
        ent = -(lp.exp() * lp).sum(-1).mean()
        return -(lp.gather(-1, a.unsqueeze(-1)).squeeze(-1) * adv).mean() - 0.02 * ent

    net = mlp(2, 32, 32, 3, act=nn.Tanh)
    return Run(
        Task(net, loss, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
        ticks(500, seed),
        lambda m: drive_score(m.net, seed),
        float(drive(lambda s: torch.zeros(len(s), 3), G(seed + 9001), 400)[2].sum(0).mean()),
        {"max_steps": 500},
    )


class Wasserstein(Manual):
    """A generator and a critic with clipped weights, in turn, each with its own RMSprop."""

    def __init__(self):
        super().__init__()
        self.gen, self.critic = mlp(4, 32, 32, 2), mlp(2, 32, 32, 1)

    def training_step(self, batch, k):
        og, oc = self.optimizers()
        x = batch[0]
        fake = self.gen(torch.randn(len(x), 4))
        if k % 4 < 3:
            self.update(oc, self.critic(fake.detach()).mean() - self.critic(x).mean())
            with torch.no_grad():
                for p in self.critic.parameters():
                    p.clamp_(-0.1, 0.1)
        else:
            self.update(og, -self.critic(fake).mean())

    def configure_optimizers(self):
        return [
            torch.optim.RMSprop(self.gen.parameters(), lr=2e-3),
            torch.optim.RMSprop(self.critic.parameters(), lr=2e-3),
        ]


def wasserstein_iris(seed):
    """A Wasserstein GAN (manual, two optimizers, clipped critic) of the petals of iris; its losses are around 0, of
    either sign, and swing. The score is minus the energy distance to the data."""
    x = datasets.load_iris().data[:, 2:]
    x = T((x - x.mean(0)) / x.std(0))
    d = loader(x.repeat(20, 1), batch=32, seed=seed)

    def energy(a):
        return -float(2 * torch.cdist(a, x).mean() - torch.cdist(a, a).mean() - torch.cdist(x, x).mean())

    def score(m):
        return energy(out(m.gen, torch.randn(400, 4, generator=G(seed + 60))))

    return Run(Wasserstein(), d, score, energy(torch.zeros(400, 2)), {"max_steps": 1400})


def spring_by_lbfgs(seed):
    """A physics-informed net for u'' = -9 u with u(0) = 1, u'(0) = 0, by LBFGS on random points (new ones each step);
    the residual loss jumps as the points change, and starts large."""
    net = mlp(1, 24, 24, 1, act=nn.Tanh)

    def loss(m, b):
        t = (2.0 * torch.rand(64, 1, generator=G(int(b[0]) // 10))).requires_grad_(True)
        u = m.net(t)
        du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        ddu = torch.autograd.grad(du.sum(), t, create_graph=True)[0]
        z = torch.zeros(1, 1, requires_grad=True)
        u0 = m.net(z)
        d0 = torch.autograd.grad(u0.sum(), z, create_graph=True)[0]
        return ((ddu + 9 * u) ** 2).mean() + 50 * ((u0 - 1) ** 2 + d0**2).sum()

    t = torch.linspace(0, 2, 200).unsqueeze(1)
    return Run(
        Task(
            net,
            loss,
            lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, history_size=10, line_search_fn="strong_wolfe"),
        ),
        ticks(200, seed),
        lambda m: r2(out(m.net, t), torch.cos(3 * t)),
        0.0,
        {"max_steps": 200},
    )


def resumed_with_cyclic_rate(seed):
    """Topics of short texts by a bag of embeddings, resumed with its AdamW state after a first part at a low rate; the
    second part has a cyclic rate that rises to fifty times its lowest."""
    torch.manual_seed(seed)
    t, y = sentences(seed)
    t, y = L(t), L(y)
    net = nn.Sequential(nn.EmbeddingBag(60, 24, padding_idx=0), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))

    def make(p):
        return torch.optim.AdamW(p, lr=4e-4, amsgrad=True)

    opt = make(net.parameters())
    for tb, yb in loader(t[:1800], y[:1800], batch=32, seed=seed + 30):
        opt.zero_grad()
        F.cross_entropy(net(tb), yb).backward()
        opt.step()
    state = copy.deepcopy(opt.state_dict())

    def resumed(p):
        new = make(p)
        new.load_state_dict(copy.deepcopy(state))
        return new

    return Run(
        Task(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            resumed,
            lambda o: torch.optim.lr_scheduler.CyclicLR(o, 4e-4, 2e-2, step_size_up=80, cycle_momentum=False),
        ),
        loader(t[:1800], y[:1800], batch=32, seed=seed),
        lambda m: accuracy(out(m.net, t[1800:]), y[1800:]),
        majority(y[1800:]),
        {"max_steps": 960},
    )


RUNS = [
    raw_disease_scores,
    wine_one_by_one,
    warm_restarts,
    negative_likelihood,
    heavy_tailed_ratings,
    unfrozen_body,
    reward_gets_larger,
    wasserstein_iris,
    spring_by_lbfgs,
    resumed_with_cyclic_rate,
]
REGIME = {"unfrozen_body", "reward_gets_larger"}
