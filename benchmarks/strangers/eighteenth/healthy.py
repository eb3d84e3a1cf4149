"""Nine correct programs that train well, though their gradients or losses look alarming."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_friedman1
from torch import nn

from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks


def digits_sum(seed):
    """A convolutional network on digits by SGD, with the loss summed over the batch and a rate to match.
    The gradients' norm is in the tens or hundreds, and uneven."""
    d = load_digits()
    x, y = T(d.images[:, None] / 16), L(d.target)
    tr, te = split(len(y), seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )

    def score(m):
        m.eval()
        return accuracy(m.net(x[te]).detach(), y[te])

    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], reduction="sum"),
        lambda p: torch.optim.SGD(p, lr=5e-4, momentum=0.9),
    )
    return Run(task, loader(x[tr], y[tr], batch=64, seed=seed), score, majority(y[te]), {"max_steps": 600})


def wine_hinge_pairs(seed):
    """A small network on wine with the multi-class hinge loss and batches of two, by plain SGD.
    Most batches come to have no gradient at all, and then one has a large one."""
    d = load_wine()
    y = L(d.target)
    tr, te = split(len(y), seed, 0.6)
    x = T(standard(d.data, tr)[0])
    task = Task(
        mlp(13, 32, 3), lambda m, b: F.multi_margin_loss(m.net(b[0]), b[1]), lambda p: torch.optim.SGD(p, lr=0.03)
    )
    data = loader(x[tr], y[tr], batch=2, seed=seed)
    return Run(task, data, lambda m: accuracy(m.net(x[te]).detach(), y[te]), majority(y[te]), {"max_steps": 1000})


def resumed_lstm(seed):
    """An LSTM that forecasts noisy chirps, stopped after 400 steps and resumed from the checkpoint file.
    Training starts low and with small gradients; momenta and step counts come from the file."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0])[..., 0]

    def make(n, s):
        g = G(s)
        w, ph = 0.3 + 0.5 * torch.rand(n, 1, generator=g), 6.28 * torch.rand(n, 1, generator=g)
        t = torch.arange(25.0)
        return torch.sin(w * t + 0.005 * t**2 + ph) + 0.05 * torch.randn(n, 25, generator=g)

    def fresh():
        return Task(
            Net(),
            lambda m, b: F.mse_loss(m.net(b[0][:, :-1, None]), b[0][:, 1:]),
            lambda p: torch.optim.Adam(p, lr=3e-3),
        )

    x, xt = make(2048, seed), make(300, seed + 999)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    first = Trainer(accelerator="cpu", max_epochs=-1, max_steps=400, **quiet)
    first.fit(fresh(), loader(x, seed=seed))
    first.save_checkpoint("first.ckpt")
    score = lambda m: r2(m.net(xt[:, :-1, None]).detach(), xt[:, 1:])
    return Run(fresh(), loader(x, seed=seed + 1), score, 0.0, {"max_steps": 1100}, {"ckpt_path": "first.ckpt"})


class Rater(Manual):
    """Embeddings with Adagrad, the network over them with Adam."""

    def __init__(self):
        super().__init__()
        self.emb, self.net = nn.Embedding(400, 8), mlp(16, 64, 1)

    def forward(self, u, i):
        return self.net(torch.cat([self.emb(u), self.emb(i + 200)], 1))[:, 0]

    def training_step(self, batch, _):
        u, i, y = batch
        a, b = self.optimizers()
        loss = F.mse_loss(self(u, i), y, reduction="sum")
        for o in (a, b):
            o.zero_grad()
        self.manual_backward(loss)
        if self.clip is not None:
            for o in (a, b):
                self.clip_gradients(o, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        a.step()
        b.step()

    def configure_optimizers(self):
        return torch.optim.Adagrad(self.emb.parameters(), lr=0.1), torch.optim.Adam(self.net.parameters(), lr=3e-3)


def neural_recommender(seed):
    """Ratings by a network over embeddings of users and items, Adagrad for these and Adam for it, loss summed.
    Items are drawn by Zipf's law: a rare row has no gradient for long, and then a large one."""
    g = G(seed)
    a, b = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g)
    p = 1 / torch.arange(1.0, 201)
    u = torch.randint(0, 200, (12000,), generator=g)
    i = torch.multinomial(p, 12000, replacement=True, generator=g)
    y = 10 * torch.tanh((a[u] * b[i]).sum(1)) + torch.randn(12000, generator=g)
    tr, te = split(12000, seed)
    data = loader(u[tr], i[tr], y[tr], batch=128, seed=seed)
    return Run(Rater(), data, lambda m: r2(m(u[te], i[te]).detach(), y[te]), 0.0, {"max_steps": 3000})


def new_camera(seed):
    """A digit classifier fed by a stream; from half way on the pictures come negated and turned by 90 degrees.
    The loss jumps far above its start, and the task stays the new one."""
    d = load_digits()
    x, y = T(d.images / 16), L(d.target)
    tr, te = split(len(y), seed)
    turned = 1 - x.rot90(1, (1, 2))

    def loss(m, b):
        return F.cross_entropy(m.net((x if m.global_step < 500 else turned)[tr][b[0]].flatten(1)), b[1])

    task = Task(mlp(64, 128, 64, 10), loss, lambda p: torch.optim.Adam(p, lr=2e-3))
    data = loader(torch.arange(len(tr)), y[tr], batch=32, seed=seed)
    score = lambda m: accuracy(m.net(turned[te].flatten(1)).detach(), y[te])
    return Run(task, data, score, majority(y[te]), {"max_steps": 1200})


def sensor_units(seed):
    """Online regression of a simulated plant's yield, whose targets come in other units (five times as large, and
    reversed) after 400 steps, for good. Gradients rise by an order of magnitude at once."""
    w = torch.randn(6, 3, generator=G(seed))

    def make(s, late):
        x = torch.randn(32, 6, generator=G(s))
        z = x @ w / 6**0.5
        y = torch.sin(2 * z[:, 0]) + z[:, 1] * z[:, 2]
        return x, -5 * y if late else y

    def loss(m, b):
        x, y = make(int(b[0]), m.global_step >= 400)
        return F.mse_loss(m.net(x)[:, 0], y)

    tests = [make(10_000_000 + seed * 100 + k, True) for k in range(40)]
    xt, yt = torch.cat([a for a, _ in tests]), torch.cat([b for _, b in tests])
    task = Task(mlp(6, 64, 64, 1, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=5e-3))
    return Run(task, ticks(1400, seed), lambda m: r2(m.net(xt).detach(), yt), 0.0, {"max_steps": 1400})


def heavy_tails(seed):
    """Regression of Friedman's function with squared loss where the noise has heavy tails (Student's t, 1.7 degrees).
    Single batches have a loss and gradients tens of times the usual, and Adam with weight decay does not mind."""
    x, y = make_friedman1(4000, random_state=seed)
    tr, te = split(4000, seed)
    clean = T(standard(y, tr)[0])
    torch.manual_seed(seed + 77)
    noise = torch.distributions.StudentT(1.7).sample((4000,))
    y = clean + 0.3 * noise
    x = T(standard(x, tr)[0])
    task = Task(
        mlp(10, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1000),
    )
    data = loader(x[tr], y[tr], batch=64, seed=seed)
    return Run(task, data, lambda m: r2(m.net(x[te]).detach(), clean[te]), 0.0, {"max_steps": 1000})


def pinn_oscillator(seed):
    """A physics-informed network solves a damped oscillator from its equation and initial values, weighted by 100.
    Second derivatives make gradients large and rough; the loss starts at about a hundred and falls by orders."""
    t = torch.linspace(0, 2, 200)[:, None]
    c, k = 1.0, 16.0
    om = (k - c**2 / 4) ** 0.5
    exact = torch.exp(-c * t / 2) * (torch.cos(om * t) + c / (2 * om) * torch.sin(om * t))

    def loss(m, b):
        s = (2 * torch.rand(64, 1, generator=G(int(b[0])))).requires_grad_()
        u = m.net(s)
        du = torch.autograd.grad(u.sum(), s, create_graph=True)[0]
        ddu = torch.autograd.grad(du.sum(), s, create_graph=True)[0]
        z = torch.zeros(1, 1, requires_grad=True)
        u0 = m.net(z)
        du0 = torch.autograd.grad(u0.sum(), z, create_graph=True)[0]
        return ((ddu + c * du + k * u) ** 2).mean() + 100 * ((u0 - 1) ** 2 + du0**2 / k).sum()

    task = Task(mlp(1, 32, 32, 1, act=nn.Tanh), loss, lambda p: torch.optim.Adam(p, lr=5e-3))
    return Run(task, ticks(1500, seed), lambda m: r2(m.net(t).detach(), exact), 0.0, {"max_steps": 1500})


def warm_restarts(seed):
    """Breast cancer by an MLP with batch norm, dropout and SGD with momentum; the rate restarts every 150 steps.
    Loss and gradients jump at each restart, which is how it is meant to be."""
    d = load_breast_cancer()
    y = L(d.target)
    tr, te = split(len(y), seed, 0.6)
    x = T(standard(d.data, tr)[0])
    net = nn.Sequential(nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))

    def score(m):
        m.eval()
        return accuracy(m.net(x[te]).detach(), y[te])

    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 150),
    )
    return Run(task, loader(x[tr], y[tr], batch=16, seed=seed), score, majority(y[te]), {"max_steps": 600})


REGIME = {"new_camera", "sensor_units"}
RUNS = [
    digits_sum,
    wine_hinge_pairs,
    resumed_lstm,
    neural_recommender,
    new_camera,
    sensor_units,
    heavy_tails,
    pinn_oscillator,
    warm_restarts,
]
