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
