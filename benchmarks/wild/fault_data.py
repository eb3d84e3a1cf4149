"""Data that needs no download, as strangers load it: raw numbers, a hold-out set, a shuffling DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Parts(NamedTuple):
    """Training and test tensors; shared between runs, so never to be written into."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def standardized(self) -> Parts:
        """Give the same with inputs of mean 0 and deviation 1, by the training part's numbers."""
        mean, deviation = self.x.mean(0), self.x.std(0) + 1e-6
        return self._replace(x=(self.x - mean) / deviation, x_test=(self.x_test - mean) / deviation)

    def scaled(self, inputs: float = 1.0, targets: float = 1.0) -> Parts:
        """Give the same in other units."""
        scaled = self._replace(x=self.x * inputs, x_test=self.x_test * inputs)
        return scaled if targets == 1 else scaled._replace(y=self.y * targets, y_test=self.y_test * targets)


def parts(x: np.ndarray, y: np.ndarray, test: float = 0.25) -> Parts:
    """Split arrays into a training and a test part, the same way every time."""
    order = np.random.default_rng(0).permutation(len(x))
    cut = int(len(x) * test)
    xs = torch.tensor(x[order], dtype=torch.float32)
    ys = torch.tensor(y[order], dtype=torch.long if y.dtype.kind == "i" else torch.float32)
    return Parts(xs[cut:], ys[cut:], xs[:cut], ys[:cut])


@lru_cache(maxsize=1)
def digits() -> Parts:
    """Give scikit-learn's digits as flat images of 0 to 16."""
    raw = datasets.load_digits()
    return parts(raw.data, raw.target)


@lru_cache(maxsize=1)
def wine() -> Parts:
    """Give the raw wine table: 13 columns, of which one is in the hundreds; three classes."""
    raw = datasets.load_wine()
    return parts(raw.data, raw.target)


@lru_cache(maxsize=1)
def cancer() -> Parts:
    """Give the raw breast cancer table: 30 columns from 0.01 to 4,000; two classes."""
    raw = datasets.load_breast_cancer()
    return parts(raw.data, raw.target)


@lru_cache(maxsize=1)
def houses() -> Parts:
    """Generate flats: area, rooms, age, floor and distance in their own units, and the target, a price in thousands."""
    rng = np.random.default_rng(21)
    area, rooms, age = rng.uniform(25, 220, 1500), rng.integers(1, 7, 1500), rng.uniform(0, 90, 1500)
    floor, distance = rng.integers(0, 12, 1500), rng.uniform(0.2, 30, 1500)
    price = (
        40
        + 2.6 * area
        + 9 * rooms
        - 0.9 * age
        + 3 * np.sqrt(floor)
        - 35 * np.log(distance)
        + 12 * rng.normal(size=1500)
    )
    return parts(np.stack([area, rooms, age, floor, distance], 1), price[:, None])


@lru_cache(maxsize=1)
def waves() -> Parts:
    """Generate a smooth function of four standardised inputs, one target column of deviation about 1."""
    rng = np.random.default_rng(22)
    x = rng.normal(size=(1600, 4))
    y = np.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3]) + 0.05 * rng.normal(size=1600)
    return parts(x, (y - y.mean())[:, None] / y.std())


@lru_cache(maxsize=1)
def rings() -> Parts:
    """Generate three noisy rings in the plane; three classes."""
    rng = np.random.default_rng(23)
    y = rng.integers(0, 3, 1500)
    angle, radius = rng.uniform(0, 2 * np.pi, 1500), 0.5 + 0.8 * y + 0.12 * rng.normal(size=1500)
    return parts(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), y)


def batches(x: Tensor, y: Tensor, size: int, seed: int, drop_last: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    """Serve shuffled batches; the order depends on the seed alone."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True, drop_last=drop_last, generator=order)


def accuracy(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by the share of right classes; an answer that is not finite is wrong."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        out = module(x)
        return float(((out.argmax(-1) == y) & out.isfinite().all(-1)).float().mean())

    return evaluate


def binary_accuracy(x: Tensor, y: Tensor, threshold: float = 0.0) -> Callable[[LightningModule], float]:
    """Score one output column against classes 0 and 1; an answer that is not finite is wrong."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        out = module(x).flatten()
        return float((((out > threshold) == (y.flatten() > 0.5)) & out.isfinite()).float().mean())

    return evaluate


def explained(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by the share of the target's variance that is explained, 0 at the least."""

    @torch.no_grad()
    def evaluate(module: LightningModule) -> float:
        module.eval()
        out = module(x).reshape(y.shape)
        score = 1 - float((out - y).double().square().mean() / (y - y.mean(0)).double().square().mean())
        return score if score > 0 else 0.0

    return evaluate
