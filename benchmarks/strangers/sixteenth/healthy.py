"""Eight right programs that look suspicious."""

import math
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sick import digits, evaluate, floor
from sklearn import datasets
from torch import nn


def walk(net, n, gen, greedy=False, horizon=20):
    """Episodes in a grid of 7 by 7: one step a time, a reward of one at the goal, where the episode ends."""
    w, goal = 7, torch.tensor([5, 4])
    move = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
    p = torch.randint(w, (n, 2), generator=gen)
    alive = ~(p == goal).all(1)
    obs, acts, rew, mask = [], [], [], []
    for _ in range(horizon):
        o = p[:, 0] * w + p[:, 1]
        if net is None:
            a = torch.randint(4, (n,), generator=gen)
        else:
            with torch.no_grad():
                z = net(F.one_hot(o, w * w).float())
            a = z.argmax(1) if greedy else torch.multinomial(z.softmax(1), 1, generator=gen)[:, 0]
        obs.append(o)
        acts.append(a)
        mask.append(alive)
        p = torch.where(alive[:, None], (p + move[a]).clamp(0, w - 1), p)
        hit = (p == goal).all(1) & alive
        rew.append(hit.float())
        alive = alive & ~hit
    return torch.stack(obs), torch.stack(acts), torch.stack(rew), torch.stack(mask)


class Grid(Manual):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = mlp(49, 32, 4), mlp(49, 32, 1)

    def training_step(self, batch, _):
        actor, critic = self.optimizers()
        o, a, r, m = walk(self.actor, 48, G(int(batch[0][0])))
        ret, run = [], torch.zeros(r.shape[1])
        for t in range(len(r) - 1, -1, -1):
            run = r[t] + 0.93 * run
            ret.append(run)
        ret = torch.stack(ret[::-1])
        x, w = F.one_hot(o, 49).float(), m.float()
        v = self.critic(x)[..., 0]
        self.update(critic, ((v - ret) ** 2 * w).sum() / w.sum())
        z = self.actor(x).log_softmax(-1)
        logp = z.gather(-1, a[..., None])[..., 0]
        entropy = -(z.exp() * z).sum(-1)
        loss = -((logp * (ret - v.detach()) + 0.003 * entropy) * w).sum() / w.sum()
        self.log("loss", loss)
        self.update(actor, loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.actor.parameters(), lr=1e-2), torch.optim.Adam(self.critic.parameters(), lr=1e-2)


def grid_world(seed):
    """An actor and a critic find the goal of a grid world. The reward is sparse: at first the actor's loss is near zero,
    and grows once the first episodes succeed; the losses move one another, and the actor's is of both signs."""

    def value(net):
        _, _, r, m = walk(net, 600, G(seed + 5), greedy=True, horizon=14)
        return float(r.sum() / m[0].sum())

    return Run(Grid(), ticks(5000, seed), evaluate(lambda s: value(s.actor)), value(None), {"max_steps": 600})


def heavy_tails(seed):
    """A regression with noise from Student's t with 1.1 degrees of freedom (no mean to speak of), with the absolute
    error and Adam: now and then a batch has a loss a thousand times as high as the others, and it is harmless."""
    g = np.random.RandomState(seed + 11)
    x = g.rand(4000, 6)
    f = np.sin(3 * x[:, 0] * x[:, 1]) * 2 + 4 * (x[:, 2] - 0.5) ** 2 + x[:, 3] - x[:, 4]
    y = f + 0.3 * g.standard_t(1.1, len(f))
    x, y, f = T(x), T(y), T(f)
    tr, te = split(len(x), seed)
    return Run(
        Task(
            mlp(6, 48, 48, 1),
            lambda s, b: F.l1_loss(s.net(b[0])[:, 0], b[1]),
            lambda p: torch.optim.Adam(p, lr=3e-3),
        ),
        loader(x[tr], y[tr], batch=32, seed=seed),
        evaluate(lambda s: floor(r2(s.net(x[te]), f[te]))),
        0.0,
        {"max_steps": 900},
    )


def restarts(seed):
    """A convolutional network with batch normalisation reads digits with SGD at a high rate, by the cosine with warm
    restarts: at each restart the rate jumps from nearly zero to 0.3, and the loss with it."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(384, 10),
    )
    return Run(
        Task(
            net,
            lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=5e-4),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 60, 2),
        ),
        loader(x, y, batch=48, seed=seed),
        evaluate(lambda s: accuracy(s.net(xt), yt)),
        majority(yt),
        {"max_steps": 419},
    )


class Thawing(Task):
    def on_train_batch_start(self, *_):
        for p in self.net[0].parameters():
            p.requires_grad_(self.global_step >= 250)


def thaw(seed):
    """A body that was trained on the digits 0 to 4 is loaded from a file and gets a new head for 5 to 9. For 250 steps
    only the head is trained; then the body thaws, and the gradients come from six times as many weights."""
    x, y, xt, yt = digits(seed)
    body, head = nn.Sequential(mlp(64, 64, 64), nn.ReLU()), nn.Linear(64, 5)
    opt = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    xo, yo, g = x[y < 5], y[y < 5], G(seed + 21)
    for _ in range(200):
        i = torch.randint(len(xo), (64,), generator=g)
        opt.zero_grad()
        F.cross_entropy(head(body(xo[i])), yo[i]).backward()
        opt.step()
    with tempfile.NamedTemporaryFile(suffix=".pt") as f:
        torch.save(body.state_dict(), f.name)
        body.load_state_dict(torch.load(f.name))
    new, newt = y >= 5, yt >= 5
    xt, yt = xt[newt], yt[newt] - 5
    net = nn.Sequential(body, nn.Linear(64, 5))
    return Run(
        Thawing(
            net,
            lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
        ),
        loader(x[new], y[new] - 5, batch=32, seed=seed),
        evaluate(lambda s: accuracy(s.net(xt), yt)),
        majority(yt),
        {"max_steps": 600},
    )


def one_by_one(seed):
    """Tumours are told apart from one sample at a time (the batch is one) with plain SGD: from step to step the loss and
    the gradient jump by orders of magnitude."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, _, _ = standard(d.data, tr)
    xa, ya, xb, yb = T(x[tr]), L(d.target[tr]), T(x[te]), L(d.target[te])
    return Run(
        Task(
            mlp(30, 24, 2, act=nn.Tanh),
            lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.05),
        ),
        loader(xa, ya, batch=1, seed=seed),
        evaluate(lambda s: accuracy(s.net(xb), yb)),
        majority(yb),
        {"max_steps": 1200},
    )


class Price(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(8, 48, 48, 1)

    def forward(self, x):
        return 3e5 * F.softplus(self.net(x)[:, 0])


def houses(seed):
    """Prices of houses in dollars with the squared error in dollars: the losses are of the order of ten to the eleventh
    and the gradients likewise. Adam does not mind."""
    g = np.random.RandomState(seed + 41)
    x = g.randn(3000, 8)
    f = 12.5 + 0.5 * x[:, 0] + 0.3 * np.sin(2 * x[:, 1]) + 0.25 * x[:, 2] * x[:, 3] + 0.1 * x[:, 4]
    y = np.exp(f + 0.08 * g.randn(len(f)))
    x, y = T(x), T(y)
    tr, te = split(len(x), seed)
    return Run(
        Task(
            Price(),
            lambda s, b: F.mse_loss(s.net(b[0]), b[1]),
            lambda p: torch.optim.Adam(p, lr=4e-3),
        ),
        loader(x[tr], y[tr], batch=32, seed=seed),
        evaluate(lambda s: floor(r2(s.net(x[te]), y[te]))),
        0.0,
        {"max_steps": 900},
    )


class MeanTeacher(Task):
    def __init__(self, *a):
        super().__init__(*a)
        self.teacher = mlp(64, 64, 64, 10).requires_grad_(False)
        self.teacher.load_state_dict(self.net.state_dict())

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for a, b in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                a.lerp_(b, 0.02)


def mean_teacher(seed):
    """Few labels: a student learns from 60 labelled digits and from its teacher, the running average of its own weights,
    on noisy unlabelled ones. The weight of their agreement rises from zero to sixty, so the loss grows as training
    goes on."""
    x, y, xt, yt = digits(seed)
    xl, yl = x[:60], y[:60]
    g = G(seed + 51)

    def loss(s, b):
        u = b[0]
        i = torch.randint(60, (32,), generator=g)
        sup = F.cross_entropy(s.net(xl[i]), yl[i])
        noisy = s.net(u + 0.25 * torch.randn(u.shape, generator=g)).softmax(1)
        with torch.no_grad():
            soft = s.teacher(u + 0.1 * torch.randn(u.shape, generator=g)).softmax(1)
        return sup + 60 * min(1, s.global_step / 400) ** 2 * F.mse_loss(noisy, soft)

    return Run(
        MeanTeacher(mlp(64, 64, 64, 10), loss, lambda p: torch.optim.Adam((q for q in p if q.requires_grad), lr=3e-3)),
        loader(x, batch=64, seed=seed),
        evaluate(lambda s: accuracy(s.teacher(xt), yt)),
        majority(yt),
        {"max_steps": 800},
    )


def second_loss(seed):
    """First the mean alone is fitted with the squared error; from step 400 on mean and variance by the likelihood. The
    loss changes its meaning, jumps and turns negative, and the gradients grow with the precision."""
    g = np.random.RandomState(seed + 61)
    n = 4000
    x = g.uniform(-2, 2, (n, 2))
    sd = np.where(x[:, 1] > 0, 0.03, 0.4)
    y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 1] + sd * g.randn(n)
    x, y = T(x), T(y)
    tr, te = split(n, seed)

    def nll(s, x, y):
        o = s.net(x)
        lv = -8 + 10 * torch.sigmoid(o[:, 1])
        return 0.5 * (lv + (y - o[:, 0]) ** 2 * (-lv).exp()).mean()

    def loss(s, b):
        return F.mse_loss(s.net(b[0])[:, 0], b[1]) if s.global_step < 400 else nll(s, *b)

    return Run(
        Task(mlp(2, 48, 48, 2, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=4e-3)),
        loader(x[tr], y[tr], batch=64, seed=seed),
        evaluate(lambda s: math.exp(-max(-3.0, float(nll(s, x[te], y[te]))))),
        math.exp(-0.5 - float(y[te].std().log())),
        {"max_steps": 1000},
    )


RUNS = [
    thaw,
    one_by_one,
    grid_world,
    heavy_tails,
    second_loss,
    houses,
    mean_teacher,
    restarts,
]
REGIME = {"thaw", "second_loss"}
