"""What the runs share: the parts of a run, a plain LightningModule, data sets and scores."""

from dataclasses import dataclass, field

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Run:
    """A program: what is trained, on what, how it is scored, and what a trivial predictor would score."""

    module: LightningModule
    train: object
    score: object
    trivial: float
    trainer: dict = field(default_factory=dict)
    fit: dict = field(default_factory=dict)


class Task(LightningModule):
    """A network, a loss of (module, batch), an optimizer and a schedule by step."""

    def __init__(self, net, loss, opt, sched=None):
        super().__init__()
        self.net, self._loss, self._opt, self._sched = net, loss, opt, sched

    def training_step(self, batch, _):
        loss = self._loss(self, batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        opt = self._opt(self.parameters())
        if self._sched is None:
            return opt
        return {"optimizer": opt, "lr_scheduler": {"scheduler": self._sched(opt), "interval": "step"}}


class Manual(LightningModule):
    """Manual optimization; clips each optimizer's gradients by norm where ``clip`` is set."""

    clip = None

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def update(self, opt, loss):
        opt.zero_grad()
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()


def T(a, dtype=torch.float32):
    return torch.as_tensor(np.asarray(a), dtype=dtype)


def L(a):
    return torch.as_tensor(np.asarray(a), dtype=torch.long)


def G(seed):
    return torch.Generator().manual_seed(seed)


def loader(*tensors, batch=32, seed=0, shuffle=True):
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=shuffle, drop_last=True, generator=G(seed))


def ticks(n, seed, batch=1):
    """A loader of numbers, for programs that make their own data: each is the seed of one batch."""
    return loader(torch.arange(n) + 100_000 * (seed + 1), batch=batch, seed=seed)


def split(n, seed, share=0.75):
    p = np.random.RandomState(seed + 300).permutation(n)
    k = int(n * share)
    return p[:k], p[k:]


def standard(x, tr):
    """Standardised by the training part; with mean and deviation."""
    m, s = x[tr].mean(0), x[tr].std(0)
    return (x - m) / s, m, s


def r2(p, y):
    p, y = p.double().reshape(-1), y.double().reshape(-1)
    return float(1 - ((p - y) ** 2).mean() / ((y - y.mean()) ** 2).mean())


def accuracy(logits, y):
    return float((logits.argmax(-1) == y).double().mean()) if torch.isfinite(logits).all() else float("nan")


def majority(y):
    return float(torch.bincount(y).max() / len(y))


def mlp(*d, act=nn.ReLU):
    out = []
    for i in range(len(d) - 1):
        out.append(nn.Linear(d[i], d[i + 1]))
        if i < len(d) - 2:
            out.append(act())
    return nn.Sequential(*out)


def digits(seed):
    """Images from 0 to 1 of 64 numbers and labels, for training and for the test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = T(x) / 16, L(y)
    tr, te = split(len(y), seed)
    return x[tr], y[tr], x[te], y[te]


def small_cnn(out=10):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, out),
    )


def letters(names, seed, length=32):
    """Windows of the descriptions of scikit-learn's data sets, as numbers from 0 to 40."""
    from sklearn import datasets as d

    alphabet = " abcdefghijklmnopqrstuvwxyz0123456789.,-:"
    s = "".join(getattr(d, f"load_{n}")().DESCR for n in names).lower()
    ids = L([alphabet.find(c) if c in alphabet else 0 for c in s])
    w = ids[: len(ids) // length * length].reshape(-1, length)
    tr, te = split(len(w), seed)
    return w[tr], w[te], len(alphabet)


class Chars(nn.Module):
    """Predicts each next character."""

    def __init__(self, rnn, v, h=64):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(v, 16), rnn(16, h, batch_first=True), nn.Linear(h, v)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def next_char(m, batch):
    w = batch[0]
    return nn.functional.cross_entropy(m.net(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten())


@torch.no_grad()
def char_score(w):
    return lambda m: -float(next_char(m, (w,)))


def unigram(w, te, v):
    q = torch.bincount(w.flatten(), minlength=v).double() + 1
    return float((q / q.sum()).log()[te[:, 1:].flatten()].mean())


def ring(n, g):
    """Points of eight Gaussians on a circle of radius 2."""
    a = torch.randint(8, (n,), generator=g) * (torch.pi / 4)
    return 2 * torch.stack([a.cos(), a.sin()], 1) + 0.1 * torch.randn(n, 2, generator=g)


def energy(x, y):
    """Energy distance of two samples."""
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def ring_score(sample):
    """One minus the energy distance to the ring, in units of that of a Gaussian of its mean and covariance."""
    real, g = ring(1500, G(9)), G(10)
    gauss = torch.randn(1500, 2, generator=g) * real.std(0) + real.mean(0)

    @torch.no_grad()
    def score(m):
        x = sample(m, torch.randn(1500, 2, generator=G(11)))
        return 1 - energy(x, real) / energy(gauss, real)

    return score
