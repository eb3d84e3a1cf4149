"""Learning rates that are too high: always, at the start, at a peak, or ever more so. The twin has the sane rate."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, LRScheduler, OneCycleLR

from benchmarks.zoo.case import Task, adam, adamw, case, classify, reconstruct, regress, rmsprop, sgd
from benchmarks.zoo.data import diabetes, digits, fashion, housing, markov
from benchmarks.zoo.models import Inception, ResNet, Transformer, autoencoder, mlp, plain_cnn

CAUSE = "learning rate"


@case(cause=CAUSE, form="cold-start", architecture="MLP", optimizer="SGD")
def mlp_sgd_rate_100x(seed: int, sick: bool) -> Task:
    """SGD at a hundred times the sane rate."""
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(2.0 if sick else 0.02))


@case(cause=CAUSE, form="cold-start", architecture="plain CNN", optimizer="Adam", steps=500)
def cnn_adam_rate_100x(seed: int, sick: bool) -> Task:
    """Adam at 0.3, copied from an SGD script."""
    return classify(plain_cnn(4), fashion(), seed, adam(0.3 if sick else 3e-3))


@case(cause=CAUSE, form="cold-start", architecture="ResNet without norm", optimizer="SGD")
def resnet_plain_sgd_rate_50x(seed: int, sick: bool) -> Task:
    """A residual net without norms at fifty times the sane rate."""
    return classify(ResNet(norm=False, width=8), digits(), seed, sgd(1.0 if sick else 0.02))


@case(cause=CAUSE, form="cold-start", architecture="Inception", optimizer="RMSprop", steps=500)
def inception_rmsprop_rate_100x(seed: int, sick: bool) -> Task:
    """RMSprop at 0.1; its first updates are ten times the rate."""
    return classify(Inception(), digits(), seed, rmsprop(0.1 if sick else 1e-3))


@case(cause=CAUSE, form="cold-start", architecture="regression MLP", optimizer="SGD", chance=0.0)
def regression_sgd_rate_20x(seed: int, sick: bool) -> Task:
    """A squared error diverges as soon as the rate is above 2 / curvature."""
    return regress(mlp((8, 48, 48, 1)), housing(), seed, sgd(0.4 if sick else 0.02))


@case(cause=CAUSE, form="cold-start", architecture="linear regression", optimizer="SGD", chance=0.0)
def linear_regression_rate_50x(seed: int, sick: bool) -> Task:
    """Linear regression on patients: a pure geometric divergence, without any non-linearity to stop it."""
    return regress(mlp((10, 1)), diabetes(), seed, sgd(0.5 if sick else 0.01, momentum=0.5))


@case(cause=CAUSE, form="cold-start", architecture="autoencoder", optimizer="AdamW fused", chance=0.0, steps=1500)
def autoencoder_fused_rate_100x(seed: int, sick: bool) -> Task:
    """The fused AdamW at 0.5."""
    return reconstruct(autoencoder(), digits(), seed, adamw(0.5 if sick else 5e-3, fused=True), size=64)


@case(cause="missing warm-up", form="cold-start", architecture="ViT (post-LN)", optimizer="AdamW", steps=600)
def vit_post_norm_no_warmup(seed: int, sick: bool) -> Task:
    """Post-LN at a high rate trains only after a warm-up (Xiong et al., 2020)."""

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, lambda t: 1.0 if sick else min(1.0, (t + 1) / 100) * 0.1)

    return classify(Transformer(True, pre=False, depth=4), digits(), seed, adamw(3e-2), scheduler=schedule)


@case(cause="schedule without end", form="drift", architecture="MLP", optimizer="SGD")
def mlp_rate_ramps_up(seed: int, sick: bool) -> Task:
    """A warm-up that nobody ended: the rate grows by 4 % a step, 10⁵ times in all."""
    gamma = 1.04 if sick else 1.0
    return classify(
        mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02), scheduler=lambda optimizer: ExponentialLR(optimizer, gamma)
    )


@case(cause="schedule without end", form="drift", architecture="plain CNN", optimizer="Adam", steps=350)
def cnn_adam_rate_ramps_up(seed: int, sick: bool) -> Task:
    """The same under Adam, whose gradients tell less of it."""
    gamma = 1.03 if sick else 1.0
    return classify(
        plain_cnn(4), digits(), seed, adam(2e-3), scheduler=lambda optimizer: ExponentialLR(optimizer, gamma)
    )


@case(cause="schedule without end", form="sudden", architecture="MLP", optimizer="SGD")
def mlp_rate_jumps_late(seed: int, sick: bool) -> Task:
    """A typing error in a milestone: the rate is multiplied by 300 instead of divided at two thirds of the run."""

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, lambda t: 1.0 if t < 200 else (300.0 if sick else 0.3))

    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02), scheduler=schedule)


@case(cause="schedule without end", form="sudden", architecture="ResNet without norm", optimizer="SGD")
def resnet_one_cycle_peak_100x(seed: int, sick: bool) -> Task:
    """A one-cycle schedule with its peak a hundred times too high; the low end comes too late for dead units."""
    peak = 5.0 if sick else 0.05
    return classify(
        ResNet(norm=False, width=8),
        digits(),
        seed,
        sgd(0.02),
        scheduler=lambda optimizer: OneCycleLR(optimizer, peak, total_steps=310),
    )


@case(cause=CAUSE, form="cold-start", architecture="GPT (pre-LN)", optimizer="AdamW", chance=0.0625)
def gpt_rate_300x(seed: int, sick: bool) -> Task:
    """A small GPT at AdamW 1.0 with a cosine schedule."""
    rate = 1.0 if sick else 3e-3
    return classify(
        Transformer(image=False), markov(), seed, adamw(rate), scheduler=lambda o: CosineAnnealingLR(o, 400)
    )
