"""Twelve programs that are right as they are, and look wrong to somebody. ``build(seed)`` returns a Run."""

import math
from pathlib import Path

import torch
from common import (
    G,
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


def euros_adagrad(seed):
    """Targets around 150,000, and a rate of 20,000 that suits them."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = T(x), T(y) * 1000
    tr, te = split(len(y), seed)
    x, _, _ = standard(x, tr)
    return Run(
        Task(nn.Linear(10, 1), lambda t, b: F.mse_loss(t.net(b[0])[:, 0], b[1]), lambda p: torch.optim.Adagrad(p, 2e4)),
        loader(x[tr], y[tr], seed=seed),
        lambda t: r2(t.net(x[te]).detach(), y[te]),
        0.0,
        {"max_steps": 500},
    )


def mixture_sharp(seed):
    """A mixture density network whose components narrow to a thousandth: the loss falls far below zero and gradients
    grow."""

    def data(n, g):
        x = torch.rand(n, 1, generator=g) * 2 - 1
        side = torch.randint(2, (n, 1), generator=g) * 2 - 1
        return x, side * (0.5 + 0.4 * torch.sin(3 * x)) + 0.003 * torch.randn(n, 1, generator=g)

    (x, y), (xt, yt) = data(3000, G(seed)), data(800, G(seed + 1000))

    def loglik(net, x, y):
        w, m, s = net(x).chunk(3, 1)
        return torch.logsumexp(
            F.log_softmax(w, 1) - s - 0.5 * ((y - m) / s.exp()) ** 2 - 0.5 * math.log(2 * math.pi), 1
        )

    trivial = float(torch.distributions.Normal(y.mean(), y.std()).log_prob(yt).mean())
    return Run(
        Task(
            mlp(1, 64, 64, 6, act=nn.Tanh),
            lambda t, b: -loglik(t.net, *b).mean(),
            lambda p: torch.optim.Adam(p, 3e-3),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1500),
        ),
        loader(x, y, batch=64, seed=seed),
        lambda t: float(loglik(t.net, xt, yt).detach().mean()),
        trivial,
        {"max_steps": 1500},
    )


def one_by_one_outliers(seed):
    """Batches of one, with noise after Student's t of two degrees of freedom."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2600, 5, generator=g)

    def f(x):
        return 2 * torch.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 2 * x[:, 3]

    z, c = torch.randn(2000, generator=g), torch.randn(2000, 2, generator=g).square().sum(1) / 2
    y = f(x[:2000]) + 0.5 * z / c.sqrt()
    return Run(
        Task(
            mlp(5, 32, 1, act=nn.Tanh),
            lambda t, b: F.mse_loss(t.net(b[0])[:, 0], b[1]),
            lambda p: torch.optim.SGD(p, 5e-3),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4000),
        ),
        loader(x[:2000], y, batch=1, seed=seed),
        lambda t: r2(t.net(x[2000:]).detach(), f(x[2000:])),
        0.0,
        {"max_steps": 4000},
    )


def rare_reward(seed):
    """A bandit of ten arms with a context, whose right arm pays once in eight times: most batches have no gradient."""
    right = torch.arange(10).repeat_interleave(2)[torch.randperm(20, generator=G(seed))]

    def loss(t, batch):
        c, coin = batch
        lp = F.log_softmax(t.net(c), 1)
        a = torch.multinomial(lp.detach().exp(), 1)
        reward = ((a[:, 0] == right[c]) & (coin < 0.125)).float()
        return -(reward * lp.gather(1, a)[:, 0]).mean()

    g = G(seed + 1)
    return Run(
        Task(nn.Embedding(20, 10), loss, lambda p: torch.optim.Adam(p, 0.02)),
        loader(torch.randint(20, (4000,), generator=g), torch.rand(4000, generator=g), batch=16, seed=seed),
        lambda t: float(t.net(torch.arange(20)).detach().softmax(1)[torch.arange(20), right].mean()),
        0.1,
        {"max_steps": 3000},
    )


def parity_small(seed):
    """The parity of three bits of six in a network of 160 weights at a rate of 0.5: nothing for long, then all at
    once."""
    x = torch.tensor([[i >> j & 1 for j in range(6)] for i in range(64)]).float() * 2 - 1
    y = (x[:, :3].prod(1) > 0).long()
    return Run(
        Task(
            mlp(6, 20, 2, act=nn.Tanh),
            lambda t, b: F.cross_entropy(t.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, 0.5),
        ),
        loader(x, y, batch=16, seed=seed),
        lambda t: accuracy(t.net(x).detach(), y),
        0.5,
        {"max_steps": 1600},
    )


def restarts_high(seed):
    """Digits by SGD with momentum, from 0.15 down and up again."""
    x, y, xt, yt = digits(seed)
    return Run(
        Task(
            small_cnn(),
            lambda t, b: F.cross_entropy(t.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, 0.15, momentum=0.9, nesterov=True),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 70, 2),
        ),
        loader(x, y, seed=seed),
        lambda t: accuracy(t.net(xt).detach(), yt),
        majority(yt),
        {"max_steps": 490},
    )


def resumed_other_text(seed):
    """A GRU that has learned the letters of one text, resumed from its checkpoint with another."""
    w, _, v = letters(["breast_cancer", "diabetes"], seed)
    w2, te, _ = letters(["wine", "iris", "linnerud", "digits"], seed)

    def task():
        return Task(Chars(nn.GRU, v), next_char, lambda p: torch.optim.AdamW(p, 0.01))

    first = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=150,
    )
    first.fit(task(), loader(w, batch=16, seed=seed))
    path = str(Path("first.ckpt").resolve())
    first.save_checkpoint(path)
    return Run(
        task(),
        loader(w2, batch=16, seed=seed),
        char_score(te),
        unigram(w2, te, v),
        {"max_steps": 500},
        {"ckpt_path": path},
    )


def ring_hinge(seed):
    """A GAN with the hinge loss: the generator's loss has any sign and wanders, the discriminator's grows again
    after its first fall."""

    class Gan(Manual):
        def __init__(self):
            super().__init__()
            self.gen, self.dis = mlp(2, 64, 64, 2, act=nn.LeakyReLU), mlp(2, 64, 64, 1, act=nn.LeakyReLU)

        def training_step(self, batch, _):
            og, od = self.optimizers()
            fake = self.gen(torch.randn(len(batch[0]), 2))
            self.update(od, F.relu(1 - self.dis(batch[0])).mean() + F.relu(1 + self.dis(fake.detach())).mean())
            self.update(og, -self.dis(fake).mean())

        def configure_optimizers(self):
            return [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.0, 0.9)) for m in (self.gen, self.dis)]

    return Run(
        Gan(),
        loader(ring(4096, G(seed)), batch=64, seed=seed),
        ring_score(lambda m, z: m.gen(z)),
        0.0,
        {"max_steps": 2800},
    )


def maze_values(seed):
    """Q-learning in a maze of 6 x 6 with a copy for the targets: values, and the loss, grow from nothing as the goal
    is heard of."""
    n, gamma = 6, 0.97
    s = torch.arange(n * n)
    row, col = s // n, s % n
    moves = torch.stack(
        [
            (row - 1).clamp(0) * n + col,
            (row + 1).clamp(max=n - 1) * n + col,
            row * n + (col - 1).clamp(0),
            row * n + (col + 1).clamp(max=n - 1),
        ],
        1,
    )
    goal = n * n - 1
    eye = torch.eye(n * n)

    class Q(Task):
        def __init__(self):
            net = mlp(n * n, 64, 4)
            super().__init__(net, None, lambda p: torch.optim.Adam(net.parameters(), 3e-3))
            self.copy = mlp(n * n, 64, 4).requires_grad_(False)
            self.copy.load_state_dict(net.state_dict())

        def training_step(self, batch, i):
            if self.global_step % 40 == 0:
                self.copy.load_state_dict(self.net.state_dict())
            s, a = batch
            t = moves[s, a]
            target = torch.where(t == goal, 50.0, gamma * self.copy(eye[t]).max(1).values)
            return F.mse_loss(self.net(eye[s]).gather(1, a[:, None])[:, 0], target)

    @torch.no_grad()
    def score(m, policy=None):
        pos, total = s[:-1].clone(), torch.zeros(n * n - 1)
        a = m.net(eye).argmax(1) if policy is None else None
        g, far = G(6), (row[:-1] - n + 1).abs() + (col[:-1] - n + 1).abs()
        for i in range(10):
            live = pos != goal
            step = a[pos] if policy is None else torch.randint(4, pos.shape, generator=g)
            pos = torch.where(live, moves[pos, step], pos)
            total = torch.where(live & (pos == goal), gamma**i, total)
        return float((total / gamma ** (far - 1.0)).mean())

    g = G(seed)
    return Run(
        Q(),
        loader(
            torch.randint(n * n - 1, (4000,), generator=g), torch.randint(4, (4000,), generator=g), batch=32, seed=seed
        ),
        score,
        score(None, "random"),
        {"max_steps": 2400},
    )


def halves_temperature(seed):
    """Upper and lower halves of digits shall find each other, with a learned temperature that has ten times the
    rate."""
    x, _, xt, _ = digits(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.low, self.scale = mlp(32, 96, 24), mlp(32, 96, 24), nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            a, b = F.normalize(self.up(x[:, :32]), dim=1), F.normalize(self.low(x[:, 32:]), dim=1)
            return self.scale.exp() * a @ b.T

    def loss(t, batch):
        p, i = t.net(batch[0]), torch.arange(len(batch[0]))
        return (F.cross_entropy(p, i) + F.cross_entropy(p.T, i)) / 2

    net = Net()
    return Run(
        Task(
            net,
            loss,
            lambda _: torch.optim.AdamW(
                [
                    {"params": [*net.up.parameters(), *net.low.parameters()], "lr": 3e-3},
                    {"params": [net.scale], "lr": 0.03},
                ]
            ),
        ),
        loader(x, batch=128, seed=seed),
        lambda t: accuracy(t.net(xt[:64]).detach(), torch.arange(64)),
        1 / 64,
        {"max_steps": 600},
    )


def longer_sums(seed):
    """A GRU adds marked numbers of sequences that become longer every 120 steps: 5, 10, 20, 40."""
    lengths = (5, 10, 20, 40)

    def data(n, length, g):
        v = torch.rand(n, length, generator=g)
        mark = (torch.rand(n, length, generator=g) < 0.4).float()
        return torch.stack([v, mark], 2), (v * mark).sum(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])[:, 0]

    def loss(t, batch):
        x, y = data(64, lengths[min(3, t.global_step // 120)], G(int(batch[0][0])))
        return F.mse_loss(t.net(x), y)

    x, y = data(500, 40, G(7))
    return Run(
        Task(Net(), loss, lambda p: torch.optim.Adam(p, 5e-3)),
        ticks(1200, seed),
        lambda t: r2(t.net(x).detach(), y),
        0.0,
        {"max_steps": 720},
    )


def picture_then_label(seed):
    """An autoencoder of digits for five epochs (mean of squares), then their labels from its code (sum of
    cross-entropies)."""
    x, y, xt, yt = digits(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec, self.label = mlp(64, 64, 16), mlp(16, 64, 64), nn.Linear(16, 10)

    def loss(t, batch):
        x, y = batch
        code = t.net.enc(x)
        if t.current_epoch < 5:
            return F.mse_loss(t.net.dec(F.relu(code)), x)
        return F.cross_entropy(t.net.label(F.relu(code)), y, reduction="sum")

    return Run(
        Task(Net(), loss, lambda p: torch.optim.Adam(p, 3e-3)),
        loader(x, y, seed=seed),
        lambda t: accuracy(t.net.label(F.relu(t.net.enc(xt))).detach(), yt),
        majority(yt),
        {"max_steps": 500},
    )


RUNS = [
    euros_adagrad,
    mixture_sharp,
    one_by_one_outliers,
    rare_reward,
    parity_small,
    restarts_high,
    resumed_other_text,
    ring_hinge,
    maze_values,
    halves_temperature,
    longer_sums,
    picture_then_label,
]
REGIME = ["longer_sums", "picture_then_label"]
