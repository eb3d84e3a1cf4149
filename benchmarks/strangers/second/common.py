"""What all runs share: the run's parts, a plain LightningModule and scores."""

from dataclasses import dataclass, field

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Run:
    module: LightningModule
    train: object
    score: object
    trivial: float
    trainer: dict = field(default_factory=dict)
    fit: dict = field(default_factory=dict)


class Plain(LightningModule):
    def __init__(self, net, loss, opt, sched=None):
        super().__init__()
        self.net, self._loss, self._opt, self._sched = net, loss, opt, sched

    def forward(self, *x):
        return self.net(*x)

    def training_step(self, batch, _):
        *x, y = batch
        loss = self._loss(self.net(*x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        opt = self._opt(self.net.parameters())
        if self._sched is None:
            return opt
        return {"optimizer": opt, "lr_scheduler": {"scheduler": self._sched(opt), "interval": "step"}}


def T(a, dtype=torch.float32):
    return torch.as_tensor(np.asarray(a), dtype=dtype)


def loader(*tensors, batch=32, seed=0, shuffle=True):
    return DataLoader(
        TensorDataset(*tensors),
        batch_size=batch,
        shuffle=shuffle,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )


def split(n, seed, share=0.75):
    p = np.random.RandomState(seed + 100).permutation(n)
    k = int(n * share)
    return p[:k], p[k:]


@torch.no_grad()
def predict(m, *x):
    m.eval()
    return m(*x)


def r2(p, y):
    p, y = p.double().reshape(-1), y.double().reshape(-1)
    return float(1 - ((p - y) ** 2).mean() / ((y - y.mean()) ** 2).mean())


def acc(p, y):
    if not torch.isfinite(p).all():
        return float("nan")
    return float((p.argmax(-1) == y).double().mean())


def majority(y):
    return float(torch.bincount(y).max() / len(y))


def mlp(*d, act=nn.ReLU):
    out = []
    for i in range(len(d) - 1):
        out.append(nn.Linear(d[i], d[i + 1]))
        if i < len(d) - 2:
            out.append(act())
    return nn.Sequential(*out)


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return T(x) / 16, T(y, torch.long)


def cnn(out=10):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, out),
    )


def pretrained_cnn(seed):
    """Trained on the digits 0 to 4, with a new head for all ten."""
    x, y = digits()
    tr, _ = split(len(y), seed)
    x, y = x[tr][y[tr] < 5].reshape(-1, 8, 8), y[tr][y[tr] < 5]
    net = cnn(5)
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(100):
        i = torch.randint(len(y), (64,))
        opt.zero_grad()
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
    net[-1] = nn.Linear(512, 10)
    return net


def text():
    from sklearn import datasets as d

    s = "".join(f().DESCR for f in (d.load_diabetes, d.load_breast_cancer, d.load_wine, d.load_iris)).lower()
    chars = sorted(set(s))
    return T([chars.index(c) for c in s], torch.long), len(chars)


class CharRNN(nn.Module):
    def __init__(self, kind, v, h=64):
        super().__init__()
        self.emb = nn.Embedding(v, 24)
        self.rnn = kind(24, h, batch_first=True)
        self.head = nn.Linear(h, v)

    def forward(self, x):
        return self.head(self.rnn(self.emb(x))[0])


def char_data(seed, length=24):
    ids, v = text()
    w = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    tr, te = split(len(w), seed)
    return w[tr], w[te], v


def seq_ce(p, y):
    return nn.functional.cross_entropy(p.flatten(0, 1), y.flatten())


def unigram(trw, tew, v):
    q = torch.bincount(trw.flatten(), minlength=v).double() + 1
    q = q / q.sum()
    return float(q[tew[:, 1:].flatten()].log().mean())
