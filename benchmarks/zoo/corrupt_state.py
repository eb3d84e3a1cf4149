"""Memory that changes by itself: weights and optimizer states hit in the middle of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.zoo.case import Event, Learner, Task, adam, adamw, case, classify, reconstruct, rmsprop, sgd, when
from benchmarks.zoo.data import digits
from benchmarks.zoo.models import Inception, Recurrent, ResNet, Transformer, autoencoder, mlp, plain_cnn


def flip_bit(path: str, bit: int) -> Event:
    """Flip one bit of the largest positive weight of a layer; bits 23 to 30 are the exponent of a float32."""

    def happen(module: Learner) -> None:
        weight = module.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        flat = weight.data.view(-1)
        i = int(flat.argmax())  # a huge negative weight would only kill a ReLU
        flat[i : i + 1].copy_((flat[i : i + 1].view(torch.int32) ^ (1 << bit)).view(torch.float32))

    return happen


def overwrite(path: str, std: float) -> Event:
    """Overwrite the weights of a layer by noise."""

    def happen(module: Learner) -> None:
        generator = torch.Generator().manual_seed(99)
        for parameter in module.get_submodule(path).parameters(recurse=False):
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))

    return happen


def spoil_state(key: str, value: float, noise: bool = False) -> Event:
    """Overwrite one tensor of every parameter's optimizer state by a constant, or by noise of that size."""

    def happen(module: Learner) -> None:
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        generator = torch.Generator().manual_seed(99)
        for state in optimizer.state.values():
            noisy = value * torch.randn(state[key].shape, generator=generator)
            state[key].copy_(noisy if noise else torch.full_like(state[key], value))

    return happen


@case(cause="flipped bit", form="sudden", architecture="MLP", optimizer="SGD", culprit=["net.fc2"])
def mlp_top_exponent_bit(seed: int, sick: bool) -> Task:
    """The top exponent bit: a weight of 0.5 becomes about 10³⁸."""
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02), events=when(sick, {180: flip_bit("net.fc2", 30)}))


@case(cause="flipped bit", form="sudden", architecture="plain CNN", optimizer="SGD", culprit=["net.conv3"], steps=500)
def cnn_exponent_bit_28(seed: int, sick: bool) -> Task:
    """A lower exponent bit flips from 0 to 1: the weight grows by 2³²."""
    return classify(plain_cnn(4), digits(), seed, sgd(0.02), events=when(sick, {200: flip_up("net.conv3", 2.0**32)}))


def flip_up(path: str, factor: float) -> Event:
    """Multiply the largest positive weight of a layer, as an exponent bit that flips from 0 to 1 does."""

    def happen(module: Learner) -> None:
        weight = module.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        flat = weight.data.view(-1)
        flat[int(flat.argmax())] *= factor

    return happen


@case(
    cause="flipped bit",
    form="sudden",
    architecture="ViT (pre-LN)",
    optimizer="AdamW",
    culprit=["net.blocks.1.down"],
    steps=500,
)
def vit_exponent_bit(seed: int, sick: bool) -> Task:
    """A weight of the residual stream grows by 2³²; the final norm hides it from the loss."""
    return classify(
        Transformer(True), digits(), seed, adamw(3e-3), events=when(sick, {180: flip_up("net.blocks.1.down", 2.0**32)})
    )


@case(
    cause="overwritten layer",
    form="sudden",
    architecture="plain CNN",
    optimizer="SGD",
    culprit=["net.conv3"],
    steps=450,
)
def cnn_layer_overwritten(seed: int, sick: bool) -> Task:
    """A convolution is overwritten by noise of size 30."""
    return classify(plain_cnn(5), digits(), seed, sgd(0.02), events=when(sick, {220: overwrite("net.conv3", 30.0)}))


@case(
    cause="overwritten layer",
    form="sudden",
    architecture="ResNet with BatchNorm",
    optimizer="SGD",
    culprit=["net.blocks.2.norm2"],
    steps=450,
)
def resnet_norm_overwritten(seed: int, sick: bool) -> Task:
    """A BatchNorm's gain and bias are overwritten by noise of size 10³."""
    return classify(
        ResNet(norm=True, width=8),
        digits(),
        seed,
        sgd(0.02),
        events=when(sick, {230: overwrite("net.blocks.2.norm2", 1e3)}),
    )


@case(
    cause="overwritten layer", form="sudden", architecture="LSTM", optimizer="RMSprop", culprit=["net.rnn"], steps=450
)
def lstm_overwritten(seed: int, sick: bool) -> Task:
    """All matrices of an LSTM are overwritten by noise of size 30: every gate saturates."""
    return classify(
        Recurrent("lstm", 8, 32, 10),
        digits(),
        seed,
        rmsprop(3e-3),
        events=when(sick, {220: overwrite("net.rnn", 30.0)}),
    )


@case(
    cause="overwritten layer",
    form="sudden",
    architecture="autoencoder",
    optimizer="Adam",
    culprit=["net.encoder1"],
    chance=0.0,
    steps=1800,
)
def autoencoder_encoder_overwritten(seed: int, sick: bool) -> Task:
    """The first encoder layer is overwritten by noise of size 100."""
    return reconstruct(
        autoencoder(),
        digits(),
        seed,
        adam(5e-3),
        size=64,
        events=when(sick, {1100: overwrite("net.encoder1", 100.0)}),
    )


@case(cause="optimizer state", form="sudden", architecture="MLP", optimizer="Adam")
def mlp_second_moment_lost(seed: int, sick: bool) -> Task:
    """Adam's second moments are zeroed and its step count is kept: the next updates are many times too large."""
    return classify(
        mlp((64, 64, 64, 10)), digits(), seed, adam(3e-3), events=when(sick, {240: spoil_state("exp_avg_sq", 0.0)})
    )


@case(cause="optimizer state", form="sudden", architecture="Inception", optimizer="SGD")
def inception_momentum_noise(seed: int, sick: bool) -> Task:
    """The momentum is overwritten by noise: ten times the rate of it goes into the weights."""
    event = spoil_state("momentum_buffer", 100.0, noise=True)
    return classify(Inception(), digits(), seed, sgd(0.02), events=when(sick, {200: event}))


@case(cause="optimizer state", form="non-finite", architecture="plain CNN", optimizer="AdamW")
def cnn_first_moment_nan(seed: int, sick: bool) -> Task:
    """Adam's first moments become NaN while every gradient is finite: the gradient norm shows nothing in advance."""
    event = spoil_state("exp_avg", float("nan"))
    return classify(plain_cnn(4), digits(), seed, adamw(3e-3), events=when(sick, {200: event}))


def drift(path: str, rate: float) -> Event:
    """Let the weights of a layer grow by a factor."""

    def happen(module: Learner) -> None:
        for parameter in module.get_submodule(path).parameters():
            if isinstance(parameter, nn.Parameter):
                parameter.mul_(rate)

    return happen


@case(cause="weight drift", form="drift", architecture="plain CNN", optimizer="SGD", culprit=["net.conv2"], steps=450)
def cnn_layer_drifts(seed: int, sick: bool) -> Task:
    """A wrong projection multiplies a layer by 1.1 in each of 100 steps: 10⁴ in all, never a sudden one."""
    events = {k: drift("net.conv2", 1.1) for k in range(150, 250)}
    return classify(plain_cnn(5), digits(), seed, sgd(0.02), events=when(sick, events))
