"""Eight programs that train well, though some look alarming; three of them change their regime on purpose."""

import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn.datasets import load_breast_cancer, load_digits, make_friedman1
from torch import nn
from torch.nn import functional as F


def evaluated(f):
    def score(module):
        module.eval()
        with torch.no_grad():
            return f(module)

    return score


def classes(x, y):
    return evaluated(lambda m: accuracy(m.net(x), y))


def crossed(m, batch):
    return F.cross_entropy(m.net(batch[0]), batch[1])


def digits(seed):
    d = load_digits()
    tr, te = split(len(d.target), seed)
    x, y = T(d.data) / 16, L(d.target)
    return x[tr], y[tr], x[te], y[te]


def friedman(seed):
    a, b = make_friedman1(2000, noise=0.5, random_state=seed)
    tr, te = split(len(a), seed)
    x = T(standard(a, tr)[0])
    return x[tr], T(b)[tr], x[te], T(b)[te]


def warm_restarts(seed):
    """A network with batch norm on digits, SGD with cosine warm restarts: the loss rises at each of them."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    module = Task(
        net,
        crossed,
        lambda p: torch.optim.SGD(p, lr=0.15, momentum=0.9),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 150),
    )
    return Run(module, loader(x, y, seed=seed), classes(xt, yt), majority(yt), {"max_steps": 600})


def prices_in_cents(seed):
    """A regression with targets of the order of 100000 by Adam with a squared loss: losses of 1e9 from the start."""
    x, y, xt, yt = friedman(seed)
    out = nn.Linear(64, 1)
    nn.init.constant_(out.bias, 1e5)
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), out)
    module = Task(
        net,
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.Adam(p, lr=0.02),
    )
    score = evaluated(lambda m: r2(m.net(xt)[:, 0], yt * 1e4))
    return Run(module, loader(x, y * 1e4, seed=seed), score, 0.0, {"max_steps": 800})


def noisy_labels_small_batches(seed):
    """Breast cancer with a fifth of the training labels wrong and batches of four: single losses jump all the time."""
    d = load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), L(d.target)
    wrong = torch.rand(len(tr), generator=G(seed)) < 0.2
    yr = torch.where(wrong, 1 - y[tr], y[tr])
    module = Task(
        nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2)),
        crossed,
        lambda p: torch.optim.Adam(p, lr=2e-3, weight_decay=1e-3),
    )
    data = loader(x[tr], yr, seed=seed, batch=4)
    return Run(module, data, classes(x[te], y[te]), majority(y[te]), {"max_steps": 500})


MIX, SHIFT = torch.tensor([[0.8, 0.5], [0.0, 0.4]]), torch.tensor([2.0, -1.5])


class BlobGAN(Manual):
    def __init__(self):
        super().__init__()
        self.gen, self.dis = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1, act=nn.SiLU)

    def configure_optimizers(self):
        return [torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.5, 0.99)) for n in (self.gen, self.dis)]

    def training_step(self, batch, _):
        g = G(int(batch[0]))
        og, od = self.optimizers()
        real = torch.randn(128, 2, generator=g) @ MIX + SHIFT
        fake = self.gen(torch.randn(128, 4, generator=g))
        d = F.softplus(-self.dis(real)).mean() + F.softplus(self.dis(fake.detach())).mean()
        self.update(od, d)
        self.update(og, F.softplus(-self.dis(fake)).mean())
        self.log("loss", d)


def blob_gan(seed):
    """A GAN of a tilted cloud of points, scored by mean and covariance: two losses that fight and never settle."""
    z = torch.randn(512, 4, generator=G(77))

    def score(p):
        return -float((p.mean(0) - SHIFT).norm() + (p.T.cov() - MIX.T @ MIX).norm())

    trivial = score(torch.zeros(512, 2))
    return Run(BlobGAN(), ticks(400, seed), evaluated(lambda m: score(m.gen(z))), trivial, {"max_steps": 1000})


def reinforce_walk(seed):
    """REINFORCE on a walk to a goal on a grid, with rewards of -1 a step: a noisy loss of either sign."""

    def episode(net, g, n, greedy):
        pos = torch.randint(0, 5, (n, 2), generator=g)
        goal = torch.randint(0, 5, (n, 2), generator=g)
        moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
        logs, back = [], torch.zeros(n)
        for _ in range(12):
            p = F.log_softmax(net(torch.cat([pos, goal], 1) / 2.0 - 1), 1)
            a = p.argmax(1) if greedy else torch.multinomial(p.detach().exp(), 1, generator=g)[:, 0]
            live = ((pos - goal).abs().sum(1) > 0).float()
            logs.append(p.gather(1, a[:, None])[:, 0] * live)
            back = back - live
            pos = torch.where(live[:, None] > 0, (pos + moves[a]).clamp(0, 4), pos)
        return torch.stack(logs).sum(0), back

    def loss(m, b):
        logs, back = episode(m.net, G(int(b[0])), 64, False)
        return -(logs * (back - back.mean())).mean()

    module = Task(mlp(4, 64, 4), loss, lambda p: torch.optim.RMSprop(p, lr=3e-3))

    def score(net, greedy):
        return float(episode(net, G(5), 500, greedy)[1].mean())

    trivial = score(lambda s: torch.zeros(len(s), 4), False)
    return Run(module, ticks(500, seed), evaluated(lambda m: score(m.net, True)), trivial, {"max_steps": 500})


def likelihood_after_squares(seed):
    """A response's mean by squares first; after 400 steps the loss is the Gaussian likelihood with its own deviation,
    in other units and below zero."""
    x, y, xt, yt = friedman(seed)
    y, yt = (y - 14) / 5, (yt - 14) / 5

    def loss(m, b):
        mean, s = m.net(b[0]).unbind(1)
        if m.global_step < 400:
            return 100 * ((mean - b[1]) ** 2).mean()
        return (0.5 * ((mean - b[1]) / (s.exp() + 0.05)) ** 2 + (s.exp() + 0.05).log()).mean()

    module = Task(mlp(10, 64, 64, 2, act=nn.Tanh), loss, lambda p: torch.optim.AdamW(p, lr=3e-3))
    score = evaluated(lambda m: r2(m.net(xt)[:, 0], yt))
    return Run(module, loader(x, y, seed=seed), score, 0.0, {"max_steps": 900})


class Unfreezing(Task):
    def on_train_batch_start(self, batch, _):
        if self.global_step == 300:
            for p in self.net[0].parameters():
                p.requires_grad_(True)


def unfreeze_for_new_labels(seed):
    """A random frozen body with a trained head on digits; at step 300 the body is thawed and the task becomes that of
    digits upside down under other labels."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()), nn.Linear(64, 10))
    for p in net[0].parameters():
        p.requires_grad_(False)

    def loss(m, b):
        if m.global_step < 300:
            return F.cross_entropy(m.net(b[0]), b[1])
        return F.cross_entropy(m.net(b[0].flip(1)), (b[1] + 3) % 10)

    module = Unfreezing(net, loss, lambda p: torch.optim.Adam(p, lr=3e-3))
    data = loader(x, y, seed=seed)
    return Run(module, data, classes(xt.flip(1), (yt + 3) % 10), majority(yt), {"max_steps": 800})


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 48, batch_first=True), nn.Linear(48, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def growing_sequences(seed):
    """A GRU that remembers the last marked bit, on sequences of 5, then 10, 20 and at last 40 steps: a curriculum."""

    def batch(n, length, g):
        bit = torch.randint(0, 2, (n, length), generator=g)
        mark = (torch.rand(n, length, generator=g) < 0.15).long()
        mark[:, 0] = 1
        last = torch.cummax(torch.arange(length) * mark, 1).values
        x = torch.stack([bit, mark, 1 - bit], 2).float()
        return x, bit.gather(1, last)

    def loss(m, b):
        length = (5, 10, 20, 40)[min(m.global_step // 120, 3)]
        x, y = batch(32, length, G(int(b[0])))
        return F.cross_entropy(m.net(x).flatten(0, 1), y.flatten())

    xt, yt = batch(256, 40, G(8))
    module = Task(Tagger(), loss, lambda p: torch.optim.Adam(p, lr=1e-2))
    return Run(module, ticks(600, seed), classes(xt, yt), majority(yt.flatten()), {"max_steps": 600})


RUNS = [
    warm_restarts,
    prices_in_cents,
    noisy_labels_small_batches,
    blob_gan,
    reinforce_walk,
    likelihood_after_squares,
    unfreeze_for_new_labels,
    growing_sequences,
]
REGIME = {"likelihood_after_squares", "unfreeze_for_new_labels", "growing_sequences"}
