"""Bad data: the weights are innocent, and a guard that keeps the batch out has nothing else to repair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import (
    Task,
    adam,
    adamw,
    case,
    classify,
    cross_entropy,
    fill,
    foreign,
    reconstruct,
    regress,
    rmsprop,
    scale,
    sgd,
    when,
)
from benchmarks.zoo.data import breast_cancer, digits, fashion, housing, markov
from benchmarks.zoo.models import Inception, ResNet, Transformer, autoencoder, mlp, plain_cnn

CAUSE = "corrupt batches"


@case(cause=CAUSE, form="sudden", architecture="MLP", optimizer="SGD")
def mlp_one_batch_scaled_1e4(seed: int, sick: bool) -> Task:
    """One batch of another data set: other units, other labels."""
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02), corrupt=when(sick, {230: foreign(1e4)}))


@case(cause=CAUSE, form="non-finite", architecture="plain CNN", optimizer="Adam")
def cnn_one_nan_pixel_row(seed: int, sick: bool) -> Task:
    """One image of one batch is NaN."""
    return classify(plain_cnn(4), digits(), seed, adam(3e-3), corrupt=when(sick, {150: fill(float("nan"))}))


@case(cause=CAUSE, form="non-finite", architecture="plain CNN", optimizer="SGD")
def cnn_nan_in_first_batch(seed: int, sick: bool) -> Task:
    """The very first batch holds a NaN: there is no history and no momentum yet."""
    return classify(plain_cnn(4), digits(), seed, sgd(0.05), corrupt=when(sick, {0: fill(float("nan"))}))


@case(cause=CAUSE, form="non-finite", architecture="ResNet with BatchNorm", optimizer="SGD")
def resnet_several_inf_batches(seed: int, sick: bool) -> Task:
    """Five batches hold an infinity; it also reaches the running statistics of every BatchNorm."""
    bad = {k: fill(float("inf")) for k in (100, 101, 140, 200, 260)}
    return classify(ResNet(norm=True, width=8), digits(), seed, sgd(0.02), corrupt=when(sick, bad))


@case(cause=CAUSE, form="sudden", architecture="regression MLP", optimizer="AdamW", chance=0.0)
def regression_stretch_scaled(seed: int, sick: bool) -> Task:
    """Forty batches in a row have inputs and targets in other units."""

    def convert(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 100, y * 1000

    bad = dict.fromkeys(range(220, 260), convert)
    return regress(mlp((8, 48, 48, 1)), housing(), seed, adamw(5e-3), corrupt=when(sick, bad))


@case(
    cause=CAUSE,
    form="non-finite",
    architecture="MLP",
    optimizer="SGD",
    steps=200,
    trainer=lambda: {"accumulate_grad_batches": 4},
)
def mlp_nan_in_one_micro_batch(seed: int, sick: bool) -> Task:
    """One micro-batch of an accumulation is NaN, and spoils the other three."""
    bad = {402: fill(float("nan")), 403: fill(float("nan"))}
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.05), size=16, corrupt=when(sick, bad))


@case(cause="outlier targets", form="sudden", architecture="regression MLP", optimizer="SGD", chance=0.0, steps=400)
def regression_one_outlier_batch(seed: int, sick: bool) -> Task:
    """A misplaced decimal point in four targets of one batch."""

    def misplace(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y[:4] *= 1e5
        return x, y

    return regress(mlp((8, 48, 48, 1)), housing(), seed, sgd(0.01), corrupt=when(sick, {330: misplace}))


@case(cause="outlier targets", form="recurrent", architecture="regression MLP", optimizer="Adam", chance=0.0, steps=400)
def regression_recurring_outliers(seed: int, sick: bool) -> Task:
    """Every fifteenth batch has an outlier of 10⁴: each is forgotten too slowly to recover before the next."""

    def outlier(k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if k % 15 == 14 and sick:
            y[0] += 1e4
        return x, y

    return regress(mlp((8, 48, 48, 1)), housing(), seed, adam(5e-3), transform=outlier)


@case(cause="log(0)", form="non-finite", architecture="MLP", optimizer="Adam", chance=0.63)
def tabular_log_of_zero(seed: int, sick: bool) -> Task:
    """Cross-entropy written by hand over a softmax: a confident answer gives log(0), and NaN from 0 · inf."""

    def by_hand(logits: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(logits, 1)
        target = nn.functional.one_hot(y, 2)
        return -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()

    loss = by_hand if sick else cross_entropy
    far = when(sick, {k: scale(60.0) for k in (120, 180, 240)})
    return classify(mlp((30, 32, 32, 2)), breast_cancer(), seed, adam(2e-3), corrupt=far, loss=loss)


@case(cause="log(0)", form="non-finite", architecture="plain CNN", optimizer="RMSprop")
def cnn_mean_over_empty_mask(seed: int, sick: bool) -> Task:
    """A loss that averages over the confident-enough samples divides 0 by 0 when there are none."""

    def masked(logits: Tensor, y: Tensor) -> Tensor:
        keep = logits.detach().softmax(1).amax(1) > (0.0 if y.min() >= 0 else 2.0)
        losses = nn.functional.cross_entropy(logits, y.clamp(min=0), reduction="none")
        return (losses * keep).sum() / keep.sum()

    def unlabel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full_like(y, -1)

    bad = when(sick, {90: unlabel, 170: unlabel})
    return classify(plain_cnn(4), digits(), seed, rmsprop(1e-3), loss=masked, corrupt=bad)


@case(cause=CAUSE, form="sudden", architecture="autoencoder", optimizer="AdamW", chance=0.0, steps=1500)
def autoencoder_raw_pixels(seed: int, sick: bool) -> Task:
    """Twenty batches of raw, unscaled pixels in a squared error: the gradient grows with the square."""

    def raw(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 1e3, y * 1e3

    bad = when(sick, dict.fromkeys(range(1420, 1440), raw))
    return reconstruct(autoencoder(), digits(), seed, adamw(5e-3), size=64, corrupt=bad)


@case(cause=CAUSE, form="recurrent", architecture="plain CNN", optimizer="SGD", steps=600)
def cnn_every_twentieth_batch_scaled(seed: int, sick: bool) -> Task:
    """A broken worker: every twentieth batch is 3000 times too bright, from the first hundred on."""
    bad = {k: scale(3e3) for k in range(100, 600, 20)}
    return classify(plain_cnn(4), fashion(), seed, sgd(0.02), corrupt=when(sick, bad))


@case(cause=CAUSE, form="sudden", architecture="Inception", optimizer="AdamW fused")
def inception_stretch_scaled_fused(seed: int, sick: bool) -> Task:
    """Thirty bright batches with random labels near the end."""
    bad = when(sick, {k: foreign(300.0) for k in range(250, 290)})
    return classify(Inception(), digits(), seed, adamw(3e-3, fused=True), corrupt=bad)


@case(cause=CAUSE, form="non-finite", architecture="GPT (pre-LN)", optimizer="AdamW fused", chance=0.0625)
def gpt_nan_weighted_batch(seed: int, sick: bool) -> Task:
    """Token weights, folded into the loss by the data, are NaN in two batches."""

    def weighted(logits: Tensor, y: Tensor) -> Tensor:
        weight = torch.where(y < 0, float("nan"), 1.0)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), y.clamp(min=0).flatten(), reduction="none")
        return (losses * weight.flatten()).mean()

    def spoil(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y[0, 0] = -1
        return x, y

    bad = when(sick, {60: spoil, 200: spoil})
    return classify(Transformer(False), markov(), seed, adamw(5e-3, fused=True), loss=weighted, corrupt=bad)
