"""Data sets that need no download, held in memory; every batch is a pure function of (seed, batch number)."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

Batch = tuple[Tensor, Tensor]
Corruption = Callable[[Tensor, Tensor], Batch]


@dataclass(frozen=True)
class Split:
    """Training and test tensors. Never write into them: they are shared by all cases of a process."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Batches(Dataset[Batch]):
    """Batch ``k`` of a shuffled, endless pass over the training data, with chosen batches corrupted.

    Shuffling depends on ``(seed, epoch)`` alone, so a guard that draws random numbers cannot change the data it gets.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        size: int,
        seed: int,
        corrupt: Mapping[int, Corruption] | None = None,
        transform: Callable[[int, Tensor, Tensor], Batch] | None = None,
    ) -> None:
        self.x, self.y, self.size, self.seed = x, y, size, seed
        self.corrupt = dict(corrupt or {})
        self.transform = transform
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return 100_000  # more than any case's max_steps: the run is one epoch

    def __getitem__(self, k: int) -> Batch:
        epoch, i = divmod(k, len(self.x) // self.size)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 10_007 + epoch)
            self._order = (epoch, torch.randperm(len(self.x), generator=generator))
        chosen = self._order[1][i * self.size : (i + 1) * self.size]
        x, y = self.x[chosen], self.y[chosen]
        if self.transform is not None:
            x, y = self.transform(k, x, y)
        if k in self.corrupt:
            x, y = self.corrupt[k](x, y)
        return x, y


def loader(batches: Dataset[Batch]) -> DataLoader[Batch]:
    """Serve whole batches in order, in this process."""
    return DataLoader(batches, batch_size=None, shuffle=False)


def _split(x: np.ndarray, y: np.ndarray, test: int, dtype: torch.dtype) -> Split:
    order = np.random.default_rng(0).permutation(len(x))
    xs, ys = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order], dtype=dtype)
    return Split(xs[test:], ys[test:], xs[:test], ys[:test])


@lru_cache(maxsize=1)
def digits() -> Split:
    """Give the 1797 handwritten digits of scikit-learn as ``(N, 1, 8, 8)`` in about [-1, 1]."""
    raw = datasets.load_digits()
    return _split(raw.images[:, None] / 8.0 - 1.0, raw.target, 400, torch.long)


@lru_cache(maxsize=1)
def fashion() -> Split:
    """Give 6,000 training and 1,000 test images of Fashion-MNIST at 14 x 14; where absent, a generated stand-in."""
    if not (FASHION / "train-images-idx3-ubyte.gz").exists():
        return _patterns()
    x, y = _idx("train", 6000)
    x_test, y_test = _idx("t10k", 1000)
    return Split(x, y, x_test, y_test)


def _idx(part: str, count: int) -> Batch:
    with gzip.open(FASHION / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784)[16:], np.uint8)
    with gzip.open(FASHION / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count)[8:], np.uint8)
    images = torch.tensor(pixels.reshape(count, 1, 28, 28), dtype=torch.float32)
    small = torch.nn.functional.avg_pool2d(images, 2)
    return (small - 73.0) / 80.0, torch.tensor(labels, dtype=torch.long)


def _patterns() -> Split:
    """Ten smooth prototypes with noise and brightness: as large as the Fashion-MNIST subset, and about as hard."""
    rng = np.random.default_rng(7)
    coarse = torch.tensor(rng.normal(size=(10, 1, 5, 5)), dtype=torch.float32)
    prototypes = torch.nn.functional.interpolate(coarse, (14, 14), mode="bilinear").numpy()
    y = rng.integers(0, 10, 7000)
    x = prototypes[y] * rng.uniform(0.5, 1.5, (7000, 1, 1, 1)) + 0.9 * rng.normal(size=(7000, 1, 14, 14))
    return _split(x, y, 1000, torch.long)


@lru_cache(maxsize=1)
def breast_cancer() -> Split:
    """Give the 569 cases of the Wisconsin breast cancer set, 30 standardised features, two classes."""
    raw = datasets.load_breast_cancer()
    x = (raw.data - raw.data.mean(0)) / raw.data.std(0)
    return _split(x, raw.target, 150, torch.long)


@lru_cache(maxsize=1)
def diabetes() -> Split:
    """Give the 442 patients of the diabetes set, standardised; the target has one column."""
    raw = datasets.load_diabetes()
    y = (raw.target - raw.target.mean()) / raw.target.std()
    return _split(raw.data / raw.data.std(0), y[:, None], 100, torch.float32)


@lru_cache(maxsize=1)
def housing() -> Split:
    """Generate 3,000 houses: eight features, a smooth non-linear price, little noise."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(3000, 8))
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3]) + x[:, 4:] @ np.array([0.5, -0.4, 0.3, 0.2])
    y = (y - y.mean()) / y.std() + 0.1 * rng.normal(size=3000)
    return _split(x, y[:, None], 600, torch.float32)


@lru_cache(maxsize=1)
def markov() -> Split:
    """Generate token sequences of a chain over 16 tokens; ``y`` is ``x`` one token later."""
    rng = np.random.default_rng(5)
    likely = rng.permutation(16)
    tokens = np.zeros((2500, 17), dtype=np.int64)
    tokens[:, 0] = rng.integers(0, 16, 2500)
    for t in range(16):
        # Every other token repeats what stood two places earlier, so that the context matters.
        rule = tokens[:, t - 1] if t % 2 == 1 else likely[tokens[:, t]]
        tokens[:, t + 1] = np.where(rng.random(2500) < 0.9, rule, rng.integers(0, 16, 2500))
    x, y = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])
    return Split(x[500:], y[500:], x[:500], y[:500])


@lru_cache(maxsize=1)
def adding() -> Split:
    """Generate the adding problem (Hochreiter & Schmidhuber, 1997): 24 numbers, the sum of the two marked ones."""
    rng = np.random.default_rng(3)
    values, marks = rng.random((4000, 24)), np.zeros((4000, 24))
    rows = np.arange(4000)
    marks[rows, rng.integers(0, 12, 4000)] = 1
    marks[rows, rng.integers(12, 24, 4000)] = 1
    y = (values * marks).sum(1, keepdims=True) - 1
    return _split(np.stack([values, marks], 2), y, 800, torch.float32)
