"""Nine correct programs that train well and yet look alarming."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from sklearn import datasets
from torch import nn

from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks


def poisson_counts(seed):
    """Poisson regression of counts from 0 to thousands with a log link, by Adam. The loss starts in the hundreds, is
    very negative later, and single batches with large counts have giant gradients."""
    rng = np.random.RandomState(seed)
    x = rng.randn(3000, 6)
    eta = 3 + 1.0 * x[:, 0] - 0.7 * x[:, 1] + 0.6 * np.abs(x[:, 2]) + 0.4 * x[:, 3] * x[:, 4]
    y = rng.poisson(np.exp(np.clip(eta, -2, 8)))
    x, y, eta = T(x), T(y), T(eta)
    tr, te = split(3000, seed)

    def loss(m, b):
        return F.poisson_nll_loss(m.net(b[0]).squeeze(1), b[1], log_input=True)

    @torch.no_grad()
    def score(m):
        return r2(m.net(x[te]), eta[te])

    module = Task(mlp(6, 64, 64, 1), loss, lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(module, loader(x[tr], y[tr], batch=64, seed=seed), score, 0.0, {"max_steps": 1000})


class Wgan(Manual):
    """Three steps of the critic with gradient penalty to one of the generator."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample
        self.gen, self.critic = mlp(4, 64, 64, 2, act=nn.LeakyReLU), mlp(2, 64, 64, 1, act=nn.LeakyReLU)

    def training_step(self, batch, i):
        g = G(int(batch[0]))
        og, oc = self.optimizers()
        x, z, u = self.sample(128, g), torch.randn(128, 4, generator=g), torch.rand(128, 1, generator=g)
        if i % 4 < 3:
            with torch.no_grad():
                fake = self.gen(z)
            mid = (u * x + (1 - u) * fake).requires_grad_()
            slope = torch.autograd.grad(self.critic(mid).sum(), mid, create_graph=True)[0].norm(dim=1)
            loss = self.critic(fake).mean() - self.critic(x).mean() + (slope - 1).square().mean()
            self.log("critic", loss)
            self.update(oc, loss)
        else:
            loss = -self.critic(self.gen(z)).mean()
            self.log("generator", loss)
            self.update(og, loss)

    def configure_optimizers(self):
        rates = ((self.gen, 1e-3), (self.critic, 3e-3))
        return [torch.optim.Adam(n.parameters(), lr=r, betas=(0.0, 0.9)) for n, r in rates]


def wgan_moons(seed):
    """A Wasserstein GAN with gradient penalty draws two moons. Both losses change sign and wander, which says nothing."""
    moons = T(datasets.make_moons(8000, noise=0.06, random_state=seed)[0]) * 1.5

    def sample(n, g):
        return moons[torch.randint(6000, (n,), generator=g)]

    def distance(a, b):
        return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())

    hold = moons[6000:]

    @torch.no_grad()
    def score(m):
        return -distance(m.gen(torch.randn(2000, 4, generator=G(seed))), hold)

    trivial = -distance(hold.mean(0).expand(2000, 2), hold)
    return Run(Wgan(sample), ticks(1500, seed), score, trivial, {"max_steps": 1500})


def digits_warm_restarts(seed):
    """A convolutional net for digits by SGD with momentum and cosine warm restarts. At each restart the rate jumps up and
    the loss with it."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = T(x / 16).view(-1, 1, 8, 8), L(y)
    tr, te = split(len(x), seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )

    def sched(opt):
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=100, T_mult=2)

    @torch.no_grad()
    def score(m):
        m.eval()
        return accuracy(m.net(x[te]), y[te])

    module = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        sched,
    )
    return Run(module, loader(x[tr], y[tr], batch=64, seed=seed), score, majority(y[te]), {"max_steps": 700})


def wine_batch_one(seed):
    """The wines one at a time, by plain SGD: gradients are nearly zero for most and large for the few mistaken ones."""
    x, y = datasets.load_wine(return_X_y=True)
    tr, te = split(len(x), seed, 0.6)
    x, y = T(standard(x, tr)[0]), L(y)

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    module = Task(
        mlp(13, 32, 3, act=nn.Tanh),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.02),
    )
    return Run(module, loader(x[tr], y[tr], batch=1, seed=seed), score, majority(y[te]), {"max_steps": 1300})


class Tuned(Task):
    """Trains the head alone for 200 steps, then the body as well."""

    def on_train_batch_start(self, batch, i):
        free = self.global_step >= 200
        for p in self.net[:-1].parameters():
            p.requires_grad_(free)


def finetune_unfreeze(seed):
    """A net trained on the digits 0 to 4 is tuned to 5 to 9 with a new head: first the head alone, then everything. At
    the thaw the gradient gets many new parts and the loss falls again."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = T(x / 16), L(y)
    net = mlp(64, 96, 64, 5)
    old, opt = y < 5, torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(150):
        opt.zero_grad()
        F.cross_entropy(net(x[old]), y[old]).backward()
        opt.step()
    net[-1] = nn.Linear(64, 5)
    x, y = x[~old], y[~old] - 5
    tr, te = split(len(x), seed)

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    module = Tuned(net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, lr=2e-3))
    return Run(module, loader(x[tr], y[tr], batch=32, seed=seed), score, majority(y[te]), {"max_steps": 700})


def resumed_diabetes(seed):
    """Progression of diabetes in its own units (25 to 346), so the loss starts at 30000; the run is resumed by AdamW
    from a checkpoint file in the middle of training, so it starts with old moments and a far smaller loss."""
    x, y = datasets.load_diabetes(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(standard(x, tr)[0]), T(y)
    data = loader(x[tr], y[tr], batch=32, seed=seed)

    def make():
        def loss(m, b):
            return F.mse_loss(m.net(b[0]).squeeze(1), b[1])

        return Task(mlp(10, 16, 1), loss, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01))

    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    first = Trainer(max_steps=250, max_epochs=-1, accelerator="cpu", **dict.fromkeys(quiet, False))
    first.fit(make(), data)
    path = os.path.abspath("half.ckpt")
    first.save_checkpoint(path)

    @torch.no_grad()
    def score(m):
        return r2(m.net(x[te]), y[te])

    return Run(make(), data, score, 0.0, {"max_steps": 800}, {"ckpt_path": path})


def parity_plateau(seed):
    """The parity of three of ten bits: for long nothing is learnt and gradients are small, then they grow by far and the
    loss falls at once."""
    x = torch.randint(2, (4000, 10), generator=G(seed)).float() * 2 - 1
    y = (x[:, :3].prod(1) > 0).long()
    tr, te = split(4000, seed)

    @torch.no_grad()
    def score(m):
        return accuracy(m.net(x[te]), y[te])

    module = Task(
        mlp(10, 128, 2), lambda m, b: F.cross_entropy(m.net(b[0]), b[1]), lambda p: torch.optim.NAdam(p, lr=5e-3)
    )
    return Run(module, loader(x[tr], y[tr], batch=64, seed=seed), score, majority(y[te]), {"max_steps": 900})


class Dqn(Task):
    """A copy of the network, renewed every 20 steps, gives the targets."""

    def __init__(self, net, copy, loss, opt):
        super().__init__(net, loss, opt)
        self.copy = copy.requires_grad_(False)

    def on_train_batch_start(self, batch, i):
        if i % 20 == 0:
            self.copy.load_state_dict(self.net.state_dict())


def gridworld_sparse_dqn(seed):
    """Deep Q-learning in a gridworld whose only reward lies in one corner, with a target network. The loss is next to
    zero at first, jumps whenever the targets are renewed, and grows as the values spread."""
    n, g = 6, G(seed)
    place = torch.arange(n * n)
    moves = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])
    s, a = torch.randint(n * n - 1, (6000,), generator=g), torch.randint(4, (6000,), generator=g)
    to = (torch.stack([s // n, s % n], 1) + moves[a]).clamp(0, n - 1)
    nxt = to[:, 0] * n + to[:, 1]
    eye = torch.eye(n * n)

    def loss(m, b):
        s, a, nxt = b
        goal = (nxt == n * n - 1).float()
        with torch.no_grad():
            target = goal + (1 - goal) * 0.9 * m.copy(eye[nxt]).amax(1)
        return F.smooth_l1_loss(m.net(eye[s]).gather(1, a[:, None]).squeeze(1), target)

    value = 0.9 ** (2 * (n - 1) - place // n - place % n - 1.0)

    @torch.no_grad()
    def score(m):
        return r2(m.net(eye[:-1]).amax(1), value[:-1])

    module = Dqn(mlp(36, 64, 4), mlp(36, 64, 4), loss, lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(module, loader(s, a, nxt, batch=64, seed=seed), score, 0.0, {"max_steps": 1200})


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mlp(32, 64, 32), mlp(32, 64, 32)
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def forward(self, x):
        return F.normalize(self.a(x[:, :32]), dim=1), F.normalize(self.b(x[:, 32:]), dim=1)


def halves_learned_temperature(seed):
    """The upper and the lower halves of digits are matched by a contrastive loss with a learned temperature, by AdamW;
    the temperature falls, and logits and gradients grow as the matching gets better."""
    x = T(datasets.load_digits().data / 16)
    tr, te = split(len(x), seed)

    def loss(m, b):
        u, v = m.net(b[0])
        logits, at = m.net.scale.clamp(max=4.6).exp() * u @ v.T, torch.arange(len(u))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2

    @torch.no_grad()
    def score(m):  # mean share of wrong lower halves that fit less well
        u, v = m.net(x[te])
        s = u @ v.T
        return float((s < s.diag()[:, None]).double().sum(1).mean() / (len(s) - 1))

    module = Task(Towers(), loss, lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.01))
    return Run(module, loader(x[tr], batch=64, seed=seed), score, 0.5, {"max_steps": 800})


RUNS = [
    poisson_counts,
    wgan_moons,
    digits_warm_restarts,
    wine_batch_one,
    finetune_unfreeze,
    resumed_diabetes,
    parity_plateau,
    gridworld_sparse_dqn,
    halves_learned_temperature,
]
REGIME = {"finetune_unfreeze"}
