"""Healthy runs of many kinds of net and of set-up: embeddings, forecasts, metric learning, imbalance, noise, decay."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from benchmarks.wild._healthy import Data, Plain, accuracy, breast_cancer, digits, loader, lr, mlp, r2, scored
from benchmarks.wild.case import Task, Variant, case
from benchmarks.wild.healthy_signs import Ordinary
from benchmarks.wild.healthy_trained import waves


class Ratings(nn.Module):
    """Factors of users and films with sparse gradients."""

    def __init__(self, users: int, films: int, width: int = 6) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(users, width, sparse=True), nn.Embedding(films, width, sparse=True)
        for table in (self.users, self.films):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pair: Tensor) -> Tensor:
        """Multiply the factors, on top of three stars."""
        return 3 + (self.users(pair[:, 0]) * self.films(pair[:, 1])).sum(1)


@case(kind="healthy", what="sparse gradients; a row is seen once in thirty steps and moves fully each time", steps=700)
def films_by_sparse_adam(seed: int, variant: Variant) -> Task:
    """Matrix factorisation of stars by SparseAdam."""
    u, f = torch.randn(150, 3), torch.randn(100, 3)
    pairs = torch.stack([torch.randint(0, 150, (9000,)), torch.randint(0, 100, (9000,))], 1)
    stars = 3 + 0.6 * (u[pairs[:, 0]] * f[pairs[:, 1]]).sum(1)
    module = Plain(Ratings(150, 100), F.mse_loss, lambda p: SparseAdam(list(p), lr(variant, 2e-2)))
    score = scored(lambda m: r2(stars[8000:], m(pairs[8000:])))
    return Task(module, loader(seed, pairs[:8000], stars[:8000], size=128), score)


@case(kind="healthy", what="rare rows of an embedding under Adagrad at a rate of a half", steps=500)
def words_by_adagrad(seed: int, variant: Variant) -> Task:
    """Bag-of-words sentiment with words of Zipf's frequencies."""
    worth = torch.randn(300)
    words = torch.multinomial(1 / torch.arange(1.0, 301), 3500 * 12, replacement=True).view(3500, 12)
    total = worth[words].sum(1)
    y = (total > total.median()).float()
    net = nn.Sequential(nn.EmbeddingBag(300, 8, mode="mean"), nn.Linear(8, 1), nn.Flatten(0))
    module = Plain(net, F.binary_cross_entropy_with_logits, lambda p: Adagrad(p, lr(variant, 0.3)))
    score = scored(lambda m: 2 * ((m(words[3000:]) > 0) == (y[3000:] > 0)).float().mean() - 1)
    return Task(module, loader(seed, words[:3000], y[:3000]), score)


class Unrolled(Ordinary):
    """An LSTM that forecasts eight steps from its own answers."""

    total = 250

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.cell, self.head = nn.LSTMCell(1, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Read a series, then go on by itself."""
        state, out = None, []
        for t in range(x.shape[1] + 7):
            now = x[:, t] if t < x.shape[1] else out[-1]
            state = self.cell(now, state)
            out.append(now + self.head(state[0]))
        return torch.stack(out[-8:], 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compare the whole forecast."""
        return F.mse_loss(self(batch[0][:, :12]), batch[0][:, 12:20])


@case(
    kind="healthy",
    what="errors feed on themselves through eight steps of forecast",
    steps=250,
    trainer=lambda: {"gradient_clip_val": 2.0},
)
def eight_steps_ahead(seed: int, variant: Variant) -> Task:
    """A recursive forecast of noisy sines."""
    x, test = waves(1000, 20), waves(200, 20)
    score = scored(lambda m: r2(test[:, 12:].flatten(1), m(test[:, :12]).flatten(1)))
    return Task(Unrolled(lr(variant, 2e-2)), loader(seed, x, size=50), score)


@case(kind="healthy", what="a narrow bottleneck that stays at the mean image for a while", steps=600)
def denoising_autoencoder(seed: int, variant: Variant) -> Task:
    """An autoencoder of blanked digits by AdamW."""
    data = digits()
    blanked = data.x * (torch.rand_like(data.x) > 0.2)
    module = Plain(
        mlp(64, 64, 12, 64, 64), F.mse_loss, lambda p: AdamW(p, lr(variant, 8e-3)), lambda o: CosineAnnealingLR(o, 600)
    )
    return Task(module, loader(seed, blanked, data.x, size=64), scored(lambda m: r2(data.x_test, m(data.x_test))))


def triplets(e: Tensor, y: Tensor) -> Tensor:
    """Compute the batch-hard triplet loss with a margin of one half."""
    d = (e[:, None] - e[None]).square().sum(2).add(1e-12).sqrt()
    same = y[:, None] == y[None]
    return F.relu((d * same).amax(1) - (d + 1e3 * same).amin(1) + 0.5).mean()


def separation(data: Data) -> Any:
    """Score an embedding by how much closer test rows of one class lie than others."""
    same = data.y_test[:, None] == data.y_test[None]

    def score(module: Any) -> Any:
        far = torch.cdist(module(data.x_test), module(data.x_test)).square()
        return 1 - far[same].mean() / far[~same].mean()

    return scored(score, 0.4)


@case(kind="healthy", what="a loss that sticks at its margin before it falls", steps=400, chance=0.4)
def batch_hard_triplets(seed: int, variant: Variant) -> Task:
    """Metric learning of the digits with the hardest triplets of a batch."""
    data = digits()
    net = nn.Sequential(mlp(64, 96, 16), nn.LayerNorm(16, elementwise_affine=False))
    module = Plain(net, triplets, lambda p: Adam(p, lr(variant, 2.5e-3)))
    return Task(module, loader(seed, data.x, data.y, size=64), separation(data))


@case(kind="healthy", what="one row in fifty weighs forty times the others: spikes of the loss", steps=600, chance=0.5)
def rare_class_with_weights(seed: int, variant: Variant) -> Task:
    """Weighted cross-entropy on a class of two per cent, scored by balanced accuracy."""
    y = (torch.rand(4500) < 0.02).long()
    x = torch.randn(4500, 6) + 1.2 * y[:, None]
    x[:, 1] *= 1 + y

    def balanced(m: Any) -> Tensor:
        right = (m(x[2500:]).argmax(1) == y[2500:]).float()
        return (right[y[2500:] == 1].mean() + right[y[2500:] == 0].mean()) / 2

    module = Plain(
        nn.Linear(6, 2),
        nn.CrossEntropyLoss(torch.tensor([1.0, 40.0])),
        lambda p: Adam(p, lr(variant, 1e-2)),
        lambda o: CosineAnnealingLR(o, 600),
    )
    return Task(module, loader(seed, x[:2500], y[:2500], size=16), scored(balanced, 0.5))


@case(kind="healthy", what="a focal loss of thousandths whose gradients come from a few rows", steps=500, chance=0.1)
def digits_by_focal_loss(seed: int, variant: Variant) -> Task:
    """Focal loss with exponent three on the digits."""
    data = digits()

    def focal(logits: Tensor, y: Tensor) -> Tensor:
        log = F.log_softmax(logits, 1).gather(1, y[:, None])
        return -((1 - log.exp()) ** 3 * log).mean()

    module = Plain(mlp(64, 64, 10), focal, lambda p: SGD(p, lr(variant, 0.06), 0.9))
    return Task(module, loader(seed, data.x, data.y, size=24), accuracy(data))


@case(kind="healthy", what="two labels in five are wrong and the loss stays high", steps=400, chance=0.1)
def digits_with_wrong_labels(seed: int, variant: Variant) -> Task:
    """A regularised net under forty per cent of label noise."""
    data = digits()
    y = torch.where(torch.rand(len(data.y)) < 0.4, torch.randint(0, 10, data.y.shape), data.y)
    net = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    module = Plain(
        net,
        F.cross_entropy,
        lambda p: AdamW(p, lr(variant, 4e-3), weight_decay=0.3),
        lambda o: CosineAnnealingLR(o, 400),
    )
    return Task(module, loader(seed, data.x, y), accuracy(data))


@case(kind="healthy", what="weights shrink for hundreds of steps while the loss rises a little", steps=600, chance=0.1)
def large_weights_decay(seed: int, variant: Variant) -> Task:
    """A net begun with large weights under heavy weight decay."""
    data = digits()
    net = mlp(64, 64, 10)
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight.mul_(4)
    module = Plain(net, F.cross_entropy, lambda p: SGD(p, lr(variant, 2e-2), 0.9, weight_decay=1e-2))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(
    kind="healthy",
    what="eight batches of two rows a step",
    steps=220,
    chance=0.1,
    trainer=lambda: {"accumulate_grad_batches": 8},
)
def eight_small_batches_a_step(seed: int, variant: Variant) -> Task:
    """Gradient accumulation over batches of two, momentum SGD."""
    data = digits()
    module = Plain(mlp(64, 48, 10), F.cross_entropy, lambda p: SGD(p, lr(variant, 0.1), 0.9, nesterov=True))
    return Task(module, loader(seed, data.x, data.y, size=2), accuracy(data))


class Stochastic(Plain):
    """Weights averaged at each epoch's end from the tenth on, as SWA does."""

    def on_train_epoch_end(self) -> None:
        """Take the weights into the average."""
        if self.current_epoch == 10:
            self.swa, self.count = copy.deepcopy(self.net), 1
        elif self.current_epoch > 10:
            self.count += 1
            with torch.no_grad():
                for a, p in zip(self.swa.parameters(), self.net.parameters(), strict=True):
                    a.lerp_(p, 1 / self.count)


@case(
    kind="healthy", what="the rate is raised twice late on, for an average of restless weights", steps=700, chance=0.6
)
def stochastic_averaging_by_hand(seed: int, variant: Variant) -> Task:
    """SWA with a rate that is raised again, tumours, batches of eight."""
    data, rate = breast_cancer(), lr(variant, 1.5e-2)
    module = Stochastic(
        mlp(30, 32, 2), F.cross_entropy, lambda p: SGD(p, rate, 0.9), lambda o: MultiStepLR(o, [200, 500], 2)
    )
    evaluate = accuracy(data, 0.6)
    return Task(module, loader(seed, data.x, data.y, size=8), lambda m: evaluate(m.swa if hasattr(m, "swa") else m))


class Tuned(Ordinary):
    """A maximum-entropy bandit whose entropy weight is learned, as in soft actor-critic."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net, self.log_alpha = mlp(3, 32, 8), nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Step the policy on its value and entropy, then the weight towards an entropy of one half."""
        x, worth = batch
        first, second = self.optimizers()  # type: ignore[misc]
        p = self.net(x).softmax(1)
        entropy = -(p * p.clamp_min(1e-8).log()).sum(1)
        first.zero_grad()
        self.manual_backward(-((p * worth).sum(1) + self.log_alpha.exp().detach() * entropy).mean())
        first.step()
        second.zero_grad()
        self.manual_backward(self.log_alpha * (entropy.mean().detach() - 0.5))
        second.step()

    def configure_optimizers(self) -> Any:
        """Use Adam for the policy and for the weight."""
        return [Adam(self.net.parameters(), self.rate), Adam([self.log_alpha], self.rate)]


@case(kind="healthy", what="a learned scalar steers the loss, whose sign changes with it", steps=800)
def entropy_weight_is_learned(seed: int, variant: Variant) -> Task:
    """A soft policy over eight arms with a target entropy."""
    x, w = torch.randn(2500, 3), torch.randn(3, 8)
    worth = torch.sin(x @ w) * 3
    best, mean = worth[2000:].amax(1).mean(), worth[2000:].mean()
    score = scored(lambda m: ((m.net(x[2000:]).softmax(1) * worth[2000:]).sum(1).mean() - mean) / (best - mean))
    return Task(Tuned(lr(variant, 1e-2)), loader(seed, x[:2000], worth[:2000], size=64), score)
