"""Ten healthy programs, which train well though something about each looks alarming."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, ticks
from sklearn.datasets import load_digits, make_moons
from torch import nn


def digits(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(x / 16), L(y)
    return x[tr], y[tr], x[te], y[te]


def classified(x, y):
    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x), y)

    return score


class Critics(Manual):
    """A Wasserstein GAN with a gradient penalty: five updates of the critic for one of the generator."""

    def __init__(self):
        super().__init__()
        self.gen, self.critic = mlp(2, 48, 48, 2), mlp(2, 48, 48, 1)

    def training_step(self, batch, _):
        og, oc = self.optimizers()
        real = batch[0]
        for _ in range(5):
            fake = self.gen(torch.randn(len(real), 2)).detach()
            mix = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(mix).sum(), mix, create_graph=True)
            gap = self.critic(fake).mean() - self.critic(real).mean()
            loss = gap + ((slope.norm(dim=1) - 1) ** 2).mean()
            self.update(oc, loss)
        self.log("loss", loss)
        self.update(og, -self.critic(self.gen(torch.randn(len(real), 2))).mean())

    def configure_optimizers(self):
        return [torch.optim.Adam(n.parameters(), 2e-3, betas=(0.5, 0.9)) for n in (self.gen, self.critic)]


def energy(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def critic_of_moons(seed):
    """A Wasserstein GAN: the loss is signed, its sign changes, and it tells nothing of the quality."""
    x = T(make_moons(2400, noise=0.05, random_state=seed)[0]) * 1.5
    held = x[2000:]

    def score(m):
        with torch.no_grad():
            made = m.gen(torch.randn(400, 2, generator=G(seed + 6)))
        return 1 - energy(made, held) / energy(held.mean(0, keepdim=True), held)

    return Run(Critics(), loader(x[:2000], batch=64, seed=seed), score, 0.0, {"max_steps": 900})


def warm_restarts(seed):
    """An image classifier by SGD, whose cosine schedule restarts at a high learning rate every 70 steps."""
    x, y, xt, yt = digits(seed)
    x, xt = x.view(-1, 1, 8, 8), xt.view(-1, 1, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip

    def score(m):
        m.eval()
        return classified(xt, yt)(m)

    module = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, 0.6, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 70, eta_min=1e-4),
    )
    return Run(module, loader(x, y, seed=seed), score, majority(yt), {"max_steps": 420})


class Counter(nn.Module):
    """A recurrent net that sums the signed amounts of a sequence."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])[:, 0]


def ledger(n, length, g):
    amount = torch.randn(n, length, generator=g)
    booked = (torch.rand(n, length, generator=g) < 0.5).float()
    return torch.stack([amount, booked], -1), (amount * booked).sum(1)


def longer_sequences(seed):
    """A curriculum: a recurrent net sums the booked amounts of 6 entries, later of 24: the loss leaps."""
    held = ledger(400, 24, G(seed + 77))

    def loss(m, batch):
        x, y = ledger(32, 6 if m.global_step < 220 else 24, G(int(batch[0])))
        return F.mse_loss(m.net(x), y)

    def score(m):
        with torch.no_grad():
            return r2(m.net(held[0]), held[1])

    module = Task(Counter(), loss, lambda p: torch.optim.Adam(p, 1e-2))
    return Run(module, ticks(600, seed), score, 0.0, {"max_steps": 560})


def new_classes_arrive(seed):
    """Ten digits of which five are only in the data from step 200 on: the loss leaps from near 0 to several nats."""
    x, y, xt, yt = digits(seed)
    few = torch.where(y < 5)[0]

    def loss(m, batch):
        g = G(int(batch[0]))
        if m.global_step < 200:
            b = few[torch.randint(len(few), (32,), generator=g)]
        else:
            b = torch.randint(len(y), (32,), generator=g)
        return F.cross_entropy(m.net(x[b]), y[b])

    module = Task(mlp(64, 64, 10), loss, lambda p: torch.optim.Adamax(p, 1e-2))
    return Run(module, ticks(600, seed), classified(xt, yt), majority(yt), {"max_steps": 500})


class Flow(nn.Module):
    """Six affine couplings in two dimensions: log-density."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(mlp(1, 32, 32, 2, act=nn.Tanh) for _ in range(6))
        self.log_scale = nn.Parameter(torch.full((2,), 0.0))

    def forward(self, x):
        x, logdet = x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))
        for part in self.parts:
            s, t = part(x[:, :1]).chunk(2, 1)
            s = 1.5 * torch.tanh(s)
            x = torch.cat([x[:, 1:] * s.exp() + t, x[:, :1]], 1)
            logdet = logdet + s[:, 0]
        return logdet - (x**2).sum(1) / 2 - math.log(2 * math.pi)


def density_below_zero(seed):
    """A normalising flow on data of a small scale: its loss, a negative log-density, passes zero and goes far below."""
    x = T(make_moons(4000, noise=0.05, random_state=seed)[0]) * 0.05
    x = x - x.mean(0)
    tr, te = x[:3200], x[3200:]
    trivial = torch.distributions.MultivariateNormal(tr.mean(0), torch.cov(tr.T)).log_prob(te).mean()

    def score(m):
        with torch.no_grad():
            return float(m.net(te).mean())

    module = Task(
        Flow(),
        lambda m, b: -m.net(b[0]).mean(),
        lambda p: torch.optim.RAdam(p, 1e-2),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.02, 750),
    )
    return Run(module, loader(tr, batch=64, seed=seed), score, float(trivial), {"max_steps": 750})


class Lion(torch.optim.Optimizer):
    """Updates by the sign of an average of gradients."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(torch.sign(torch.lerp(mean, p.grad, 0.1)), alpha=group["lr"])
                mean.lerp_(p.grad, 0.01)
        return loss


def cauchy_noise(seed):
    """A robust regression on targets of Cauchy noise: a batch's L1 loss may be a thousand times the usual one."""
    rs = np.random.RandomState(seed + 9)
    x = rs.randn(12000, 6)
    y = 2 * np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] + np.abs(x[:, 3])
    noisy, x, y = T(y + 0.3 * rs.standard_cauchy(12000)), T(x), T(y)

    def score(m):
        with torch.no_grad():
            return r2(m.net(x[11000:]), y[11000:])

    module = Task(
        mlp(6, 64, 64, 1),
        lambda m, b: F.l1_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: Lion(p, 1e-3),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 800),
    )
    return Run(module, loader(x[:11000], noisy[:11000], seed=seed), score, 0.0, {"max_steps": 800})


class Sign(torch.autograd.Function):
    """The sign; its backward pass lets gradients straight through where the input is within 1."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return torch.where(w >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        (w,) = ctx.saved_tensors
        return grad * (w.abs() <= 1)


class Binary(nn.Linear):
    """A layer of binary weights."""

    def forward(self, x):
        return F.linear(x, Sign.apply(self.weight), self.bias) / math.sqrt(self.in_features)


def binary_weights(seed):
    """Weights and activations of one bit, by a straight-through estimator: its gradients are of no function."""
    x, y, xt, yt = digits(seed)

    class Fire(nn.Module):
        def forward(self, h):
            return Sign.apply(h)

    net = nn.Sequential(Binary(64, 128), nn.BatchNorm1d(128), Fire(), Binary(128, 10))

    def score(m):
        m.eval()
        return classified(xt, yt)(m)

    module = Task(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, 1e-2))
    return Run(module, loader(x, y, seed=seed), score, majority(yt), {"max_steps": 500})


class Targets(Manual):
    """Q-learning, by hand, with a target net that is replaced every 25 steps."""

    def __init__(self, net, move, reward, gamma):
        super().__init__()
        self.net, self.old = net, copy.deepcopy(net).requires_grad_(False)
        self.move, self.reward, self.gamma, self.count = move, reward, gamma, 0

    def training_step(self, batch, _):
        g, states = G(int(batch[0])), torch.eye(len(self.move))
        s, a = torch.randint(len(states), (64,), generator=g), torch.randint(self.move.shape[1], (64,), generator=g)
        with torch.no_grad():
            goal = self.reward[s, a] + self.gamma * self.old(states[self.move[s, a]]).amax(1)
        loss = F.mse_loss(self.net(states[s]).gather(1, a[:, None])[:, 0], goal)
        self.log("loss", loss)
        self.update(self.optimizers(), loss)
        self.count += 1
        if self.count % 25 == 0:
            self.old.load_state_dict(self.net.state_dict())

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.net.parameters(), 3e-3)


def target_net_replaced(seed):
    """Q-learning with a hard-replaced target net: at each replacement the loss leaps, and the values keep growing."""
    rs = np.random.RandomState(seed + 2)
    move, reward, gamma = L(rs.randint(24, size=(24, 3))), T(6 * (rs.rand(24, 3) < 0.2) + rs.rand(24, 3)), 0.85
    q = torch.zeros(24, 3)
    for _ in range(300):
        q = reward + gamma * q.amax(1)[move]

    def score(m):
        with torch.no_grad():
            return r2(m.net(torch.eye(24)), q)

    module = Targets(mlp(24, 64, 3), move, reward, gamma)
    return Run(module, ticks(900, seed), score, 0.0, {"max_steps": 800})


def dollars_accumulated(seed):
    """House prices in dollars: a summed squared error of 1e12, four batches accumulated, huge loss and gradients."""
    rs = np.random.RandomState(seed + 31)
    x = rs.randn(6000, 7)
    y = 3e5 * np.exp(0.4 * x[:, 0] + 0.3 * x[:, 1] * (x[:, 2] > 0) + 0.2 * np.cos(2 * x[:, 3]) + 0.05 * rs.randn(6000))
    x, y = T(x), T(y)

    def price(m, a):
        return 3e5 + 2e5 * m.net(a)[:, 0]

    def score(m):
        with torch.no_grad():
            return r2(price(m, x[5000:]), y[5000:])

    def loss(m, batch):
        return ((price(m, batch[0]) - batch[1]) ** 2).sum()

    module = Task(mlp(7, 48, 48, 1), loss, lambda p: torch.optim.NAdam(p, 5e-3))
    data = loader(x[:5000], y[:5000], batch=16, seed=seed)
    return Run(module, data, score, 0.0, {"max_steps": 250, "accumulate_grad_batches": 4})


class Pruned(Task):
    """At step 120 puts to zero the smallest 93% of each weight matrix, and holds them there."""

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            if self.global_step == 120:
                weights = [p for p in self.net.parameters() if p.ndim == 2]
                self.kept = [(p, p.abs() > p.abs().flatten().quantile(0.93)) for p in weights]
            if self.global_step >= 120:
                for p, keep in self.kept:
                    p.mul_(keep)


def resumed_then_pruned(seed):
    """A classifier resumed with its optimizer's state, cut to 7% of its weights at step 120: the loss leaps."""
    x, y, xt, yt = digits(seed)
    net = mlp(64, 64, 64, 10)
    first = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    g = G(seed + 13)
    for _ in range(150):
        b = torch.randint(len(y), (32,), generator=g)
        first.zero_grad()
        F.cross_entropy(net(x[b]), y[b]).backward()
        first.step()
    state = copy.deepcopy(first.state_dict())

    def opt(p):
        out = torch.optim.SGD(p, 0.1, momentum=0.9)
        out.load_state_dict(state)
        return out

    module = Pruned(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), opt)
    return Run(module, loader(x, y, seed=seed), classified(xt, yt), majority(yt), {"max_steps": 400})


REGIME = {"longer_sequences", "new_classes_arrive"}
RUNS = [
    critic_of_moons,
    warm_restarts,
    longer_sequences,
    new_classes_arrive,
    density_below_zero,
    cauchy_noise,
    binary_weights,
    target_net_replaced,
    dollars_accumulated,
    resumed_then_pruned,
]
