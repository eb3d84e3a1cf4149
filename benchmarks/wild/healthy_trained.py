"""Healthy runs that begin with a trained model: resumed, warm-started, fine-tuned, solved exactly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from benchmarks.wild._healthy import (
    Data,
    Plain,
    accuracy,
    breast_cancer,
    diabetes,
    digits,
    fitted,
    loader,
    lr,
    mlp,
    r2,
    resumed,
    scored,
    train,
)
from benchmarks.wild.case import Task, Variant, case


@case(kind="healthy", what="a classifier resumed when nearly every batch has a loss near zero", steps=600, chance=0.1)
def digits_resumed_with_adam(seed: int, variant: Variant) -> Task:
    """An MLP on the digits, resumed after 250 steps."""
    data = digits()

    def make() -> LightningModule:
        return Plain(mlp(64, 64, 10), F.cross_entropy, lambda p: Adam(p, lr(variant, 3e-3)))

    return resumed(make, loader(seed, data.x, data.y), accuracy(data), 250)


@case(kind="healthy", what="resumed just before the schedule jumps back to its full rate", steps=560, chance=0.1)
def resumed_before_a_warm_restart(seed: int, variant: Variant) -> Task:
    """Momentum SGD with cosine restarts every 200 steps, resumed at step 360."""
    data = digits()

    def make() -> LightningModule:
        return Plain(
            mlp(64, 48, 48, 10),
            F.cross_entropy,
            lambda p: SGD(p, lr(variant, 0.1), 0.9),
            lambda o: CosineAnnealingWarmRestarts(o, 200),
        )

    return resumed(make, loader(seed, data.x, data.y), accuracy(data), 360)


class Forecaster(LightningModule):
    """A GRU that says the next value of a series at every place."""

    def __init__(self, rate: float, decay: float = 1.0) -> None:
        super().__init__()
        self.gru, self.head, self.rate, self.decay = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1), rate, decay

    def forward(self, x: Tensor) -> Tensor:
        """Predict from the left context."""
        out: Tensor = self.head(self.gru(x)[0])
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compare each prediction with the value that follows."""
        (x,) = batch
        return F.mse_loss(self(x[:, :-1]), x[:, 1:])

    def configure_optimizers(self) -> Any:
        """Use Adam with an exponential decay by epochs."""
        optimizer = Adam(self.parameters(), self.rate)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)]


def waves(count: int = 512, length: int = 25) -> Tensor:
    """Give sines of random frequency, phase and size with a little noise."""
    t = torch.arange(length)[None]
    size, pace, phase = torch.rand(3, count, 1)
    return ((0.5 + size) * torch.sin((0.3 + 0.5 * pace) * t + 6.3 * phase) + 0.02 * torch.randn(count, length))[
        ..., None
    ]


@case(
    kind="healthy",
    what="a clipped GRU resumed from a checkpoint",
    steps=350,
    trainer=lambda: {"gradient_clip_val": 1.0},
)
def gru_forecaster_resumed(seed: int, variant: Variant) -> Task:
    """Forecasts of noisy sines, resumed after ten epochs."""
    x, test = waves(), waves(128)
    score = scored(lambda m: r2(test[:, 5:].flatten(1), m(test[:, :-1])[:, 4:].flatten(1)))
    return resumed(lambda: Forecaster(lr(variant, 1e-2), 0.97), loader(seed, x), score, 160)


@case(kind="healthy", what="trained weights under an optimizer with no memory", steps=300, chance=0.6)
def tumours_warm_started(seed: int, variant: Variant) -> Task:
    """A trained state dict loaded into a new module that trains on with AdamW."""
    data = breast_cancer()
    batches = loader(seed, data.x, data.y, size=16)
    before = Plain(mlp(30, 32, 2), F.cross_entropy, lambda p: Adam(p, 3e-3))
    train(before, batches, 200)
    module = Plain(mlp(30, 32, 2), F.cross_entropy, lambda p: AdamW(p, lr(variant, 1e-3)))
    module.load_state_dict(before.state_dict())
    return Task(module, batches, accuracy(data, 0.6))


def solved(data: Data) -> nn.Linear:
    """Give the linear layer that lstsq finds."""
    a = torch.cat([data.x, torch.ones(len(data.x), 1)], 1).double()
    answer = torch.linalg.lstsq(a, data.y.double()).solution.float()
    layer = nn.Linear(data.x.shape[1], data.y.shape[1])
    layer.load_state_dict({"weight": answer[:-1].T, "bias": answer[-1]})
    return layer


@case(kind="healthy", what="begins at the minimum: the loss is noise and never falls", steps=400)
def diabetes_already_solved(seed: int, variant: Variant) -> Task:
    """A regression set to its least-squares solution, then trained on by SGD on the raw target."""
    data = diabetes()
    module = Plain(solved(data), F.mse_loss, lambda p: SGD(p, lr(variant, 1e-3)))
    return Task(module, loader(seed, data.x, data.y), fitted(data))


@case(kind="healthy", what="the loss is rounding error and jitters by many powers of ten", steps=300)
def noise_free_line_already_solved(seed: int, variant: Variant) -> Task:
    """A noise-free linear law solved exactly, then trained on by Adam."""
    x, w = torch.randn(500, 6), torch.tensor([[3.0, -2, 0.5, 7, 0, 1]]).T
    data = Data(x[:400], x[:400] @ w + 4, x[400:], x[400:] @ w + 4)
    module = Plain(solved(data), F.mse_loss, lambda p: Adam(p, lr(variant, 1e-3)))
    return Task(module, loader(seed, data.x, data.y, size=20), fitted(data))


def trunk_of_low_digits(seed: int, data: Data) -> nn.Sequential:
    """Train a trunk to tell the digits below five."""
    low = data.y < 5
    before = Plain(
        nn.Sequential(mlp(64, 96, 48), nn.ReLU(), nn.Linear(48, 5)), F.cross_entropy, lambda p: Adam(p, 3e-3)
    )
    train(before, loader(seed, data.x[low], data.y[low]), 150)
    return nn.Sequential(*before.net[:2])


@case(kind="healthy", what="almost all parameters have no gradient, the new head's are large", steps=400, chance=0.1)
def new_head_on_frozen_trunk(seed: int, variant: Variant) -> Task:
    """A fresh head for ten digits on a frozen trunk that knew five."""
    data = digits()
    trunk = trunk_of_low_digits(seed, data).requires_grad_(False)
    module = Plain(nn.Sequential(trunk, nn.Linear(48, 10)), F.cross_entropy, lambda p: Adam(p, lr(variant, 2e-2)))
    return Task(module, loader(seed, data.x, data.y, size=64), accuracy(data))


@case(kind="healthy", what="two rates fifty times apart and a head that begins at random", steps=400, chance=0.1)
def discriminative_rates(seed: int, variant: Variant) -> Task:
    """A trained trunk at a low rate under a fresh head at a high one."""
    data = digits()
    net = nn.Sequential(trunk_of_low_digits(seed, data), nn.Linear(48, 10))

    def optimizer(_: Any) -> Any:
        groups = [{"params": net[0].parameters(), "lr": lr(variant, 4e-4)}, {"params": net[1].parameters()}]
        return AdamW(groups, lr(variant, 2e-2))

    return Task(Plain(net, F.cross_entropy, optimizer), loader(seed, data.x, data.y), accuracy(data))


class Unfreezing(LightningModule):
    """A classifier whose trunk layers begin to train at the third and at the sixth epoch."""

    def __init__(self, trunk: nn.Sequential, rate: float) -> None:
        super().__init__()
        self.trunk, self.head, self.rate = trunk.requires_grad_(False), nn.Linear(48, 10), rate

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        out: Tensor = self.head(self.trunk(x))
        return out

    def on_train_epoch_start(self) -> None:
        """Thaw the layer that is due and give it to the optimizer."""
        layers = {3: self.trunk[0][2], 6: self.trunk[0][0]}
        if self.current_epoch in layers:
            layer = layers[self.current_epoch].requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": list(layer.parameters()), "lr": self.rate / 5})

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Begin with the head alone."""
        return Adam(self.head.parameters(), self.rate)


@case(kind="healthy", what="the gradient grows by steps as layers thaw in mid-run", steps=400, chance=0.1, regime=True)
def gradual_unfreezing(seed: int, variant: Variant) -> Task:
    """Thawing a trunk from the top."""
    data = digits()
    module = Unfreezing(trunk_of_low_digits(seed, data), lr(variant, 1e-2))
    return Task(module, loader(seed, data.x, data.y), accuracy(data))


@case(kind="healthy", what="a first loss of ten or more, since the images are inverted", steps=400, chance=0.1)
def fine_tuned_on_negatives(seed: int, variant: Variant) -> Task:
    """A convolutional net trained on white digits, fine-tuned whole on black ones by momentum SGD."""
    data = digits()
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    train(Plain(net, F.cross_entropy, lambda p: Adam(p, 5e-3)), loader(seed, data.x, data.y), 150)
    black = data._replace(x=1 - data.x, x_test=1 - data.x_test)
    module = Plain(net, F.cross_entropy, lambda p: SGD(p, lr(variant, 3e-2), 0.9))
    return Task(module, loader(seed, black.x, black.y), accuracy(black))


@case(
    kind="healthy",
    what="a classifier's trunk under a head for values in the hundreds: losses of 1e5 at first",
    steps=400,
)
def trunk_reused_for_ink(seed: int, variant: Variant) -> Task:
    """Regression of the ink of a digit, about 313, on a trained trunk."""
    data = digits()
    ink = data._replace(y=data.x.sum(1, keepdim=True) * 16, y_test=data.x_test.sum(1, keepdim=True) * 16)
    net = nn.Sequential(trunk_of_low_digits(seed, data), nn.Linear(48, 1))
    module = Plain(net, F.mse_loss, lambda p: Adam(p, lr(variant, 1e-2)))
    return Task(module, loader(seed, ink.x, ink.y), fitted(ink))


class Averaged(Plain):
    """A net that is scored by the running average of its weights."""

    def on_fit_start(self) -> None:
        """Begin the average at the weights."""
        self.average = copy.deepcopy(self.net)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average towards the weights."""
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.net.parameters(), strict=True):
                a.lerp_(p, 0.02)


@case(kind="healthy", what="a high constant rate: the weights rattle and their average learns", steps=500, chance=0.1)
def weights_averaged_by_hand(seed: int, variant: Variant) -> Task:
    """RMSprop on the digits with an exponential average of the weights."""
    data = digits()
    module = Averaged(mlp(64, 64, 10), F.cross_entropy, lambda p: RMSprop(p, lr(variant, 3e-3)))
    averaged = accuracy(data)
    return Task(module, loader(seed, data.x, data.y), lambda m: averaged(getattr(m, "average", m)))
