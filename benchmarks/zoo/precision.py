"""Low-precision overflow: a GradScaler on the CPU, and a softmax that only large numbers break."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from benchmarks.zoo.case import Task, adam, case, classify, foreign, scale, sgd, when
from benchmarks.zoo.data import digits
from benchmarks.zoo.initialisation import enlarge
from benchmarks.zoo.models import mlp, plain_cnn

CAUSE = "low precision"


def half() -> dict[str, Any]:
    """Make a real fp16 GradScaler on the CPU; ``precision="16-mixed"`` alone would silently become bf16 there."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}


@case(cause=CAUSE, form="overflow", architecture="MLP", optimizer="SGD", culprit=["net.fc2"], trainer=half)
def mlp_half_activations_overflow(seed: int, sick: bool) -> Task:
    """One layer's outputs exceed 65504: every step is skipped by the scaler, for ever."""
    net = mlp((64, 64, 64, 10))
    if sick:
        enlarge(net, "fc2", 1e6)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="overflow", architecture="plain CNN", optimizer="Adam", trainer=half, steps=250)
def cnn_half_rate_100x(seed: int, sick: bool) -> Task:
    """Too high a rate drives the weights to where fp16 overflows, and there they stay."""
    return classify(plain_cnn(4, 8), digits(), seed, adam(1.0 if sick else 5e-3))


@case(cause=CAUSE, form="sudden", architecture="MLP", optimizer="SGD", trainer=half)
def mlp_half_batch_scaled(seed: int, sick: bool) -> Task:
    """A stretch of batches fifty times too large is still finite in fp16: the scaler lets it pass."""
    bad = when(sick, {k: foreign(50.0) for k in range(240, 290)})
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.05), corrupt=bad)


@case(cause=CAUSE, form="non-finite", architecture="MLP", optimizer="SGD")
def mlp_naive_softmax(seed: int, sick: bool) -> Task:
    """A softmax without the subtraction of the maximum overflows on three batches of larger inputs."""

    def naive(logits: Tensor, y: Tensor) -> Tensor:
        exp = logits.exp()
        return -(exp / exp.sum(1, keepdim=True)).log()[torch.arange(len(y)), y].mean()

    loss = naive if sick else nn.functional.cross_entropy
    bad = when(sick, {k: scale(40.0) for k in (120, 200, 250)})
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02), loss=loss, corrupt=bad)
