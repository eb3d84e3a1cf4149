"""Bad initial weights: the run is sick from its first step, before there is any history to compare with."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.zoo.case import Task, adam, adamw, case, classify, reconstruct, regress, rmsprop, sgd
from benchmarks.zoo.data import digits, housing
from benchmarks.zoo.models import Inception, Recurrent, ResNet, Transformer, autoencoder, mlp, plain_cnn

CAUSE = "initialisation"


def enlarge(net: nn.Module, layer: str, factor: float) -> None:
    """Multiply the weight of a layer."""
    weight = net.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.mul_(factor)


@case(cause=CAUSE, form="cold-start", architecture="plain CNN", optimizer="SGD", culprit=["net.conv4"])
def cnn_one_layer_1e8(seed: int, sick: bool) -> Task:
    """One convolution starts 10⁸ times too large; all other layers get the huge gradients."""
    net = plain_cnn()
    if sick:
        enlarge(net, "conv4", 1e8)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="plain CNN", optimizer="Adam", culprit=["net.conv3"])
def cnn_one_layer_1e4_adam(seed: int, sick: bool) -> Task:
    """Adam hides the huge gradients, but cannot shrink the layer in time."""
    net = plain_cnn()
    if sick:
        enlarge(net, "conv3", 1e4)
    return classify(net, digits(), seed, adam(3e-3))


@case(cause=CAUSE, form="cold-start", architecture="CNN with BatchNorm", optimizer="SGD", culprit=["net.norm3"])
def cnn_norm_gain_1e4(seed: int, sick: bool) -> Task:
    """The gain of one BatchNorm starts at 10⁴."""
    net = plain_cnn(4, norm=True)
    net.norm4 = nn.Identity()  # else the next norm would cancel it
    if sick:
        enlarge(net, "norm3", 1e4)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="MLP", optimizer="SGD")
def mlp_all_layers_standard_normal(seed: int, sick: bool) -> Task:
    """Every weight is drawn from N(0, 1) instead of N(0, 2/fan): the classic beginner's initialisation."""
    net = mlp((64, 64, 64, 64, 64, 10))
    if sick:
        for module in net:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="MLP", optimizer="SGD", culprit=["net.fc3"])
def mlp_constant_layer(seed: int, sick: bool) -> Task:
    """One layer is filled with ones: all its units are alike, and its gain is its width."""
    net = mlp((64, 64, 64, 64, 10))
    if sick:
        layer = net.get_submodule("fc3")
        assert isinstance(layer, nn.Linear)
        nn.init.ones_(layer.weight)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="ResNet without norm", optimizer="SGD")
def resnet_branches_wrong_gain(seed: int, sick: bool) -> Task:
    """Six residual branches without a norm, each thirty times too strong: the gain is their product."""
    net = ResNet(norm=False, blocks=6, width=8)
    if sick:
        for i in range(6):
            enlarge(net, f"blocks.{i}.conv2", 30.0)
    return classify(net, digits(), seed, sgd(0.01))


@case(cause=CAUSE, form="cold-start", architecture="Inception", optimizer="SGD", steps=400, culprit=["net.mixed2.wide"])
def inception_one_branch_1e5(seed: int, sick: bool) -> Task:
    """The 5x5 branch of the second block drowns its neighbours."""
    net = Inception()
    if sick:
        enlarge(net, "mixed2.wide", 1e5)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="RNN", optimizer="SGD", culprit=["net.rnn"])
def rnn_recurrent_gain_8(seed: int, sick: bool) -> Task:
    """A recurrent matrix of gain 8 in a ReLU RNN: 8⁸ after eight rows."""
    net = Recurrent("relu", 8, 32, 10)
    if sick:
        with torch.no_grad():
            net.recurrent_weight.mul_(8.0)
    return classify(net, digits(), seed, sgd(0.02))


@case(cause=CAUSE, form="cold-start", architecture="ViT (pre-LN)", optimizer="AdamW", culprit=["net.head"], steps=600)
def vit_head_1e4(seed: int, sick: bool) -> Task:
    """The head starts 10⁴ times too large: AdamW would need ages to shrink it."""
    net = Transformer(image=True)
    if sick:
        enlarge(net, "head", 1e4)
    return classify(net, digits(), seed, adamw(3e-3))


@case(
    cause=CAUSE,
    form="cold-start",
    architecture="autoencoder",
    optimizer="RMSprop",
    culprit=["net.decoder1"],
    chance=0.0,
    steps=1500,
)
def autoencoder_decoder_1e5(seed: int, sick: bool) -> Task:
    """The first decoder layer of an autoencoder starts 10⁵ times too large."""
    net = autoencoder()
    if sick:
        enlarge(net, "decoder1", 1e5)
    return reconstruct(net, digits(), seed, rmsprop(5e-3), size=64)


@case(cause=CAUSE, form="cold-start", architecture="regression MLP", optimizer="Adam", culprit=["net.fc3"], chance=0.0)
def regression_output_1e4(seed: int, sick: bool) -> Task:
    """The output layer of a regression starts 10⁴ times too large."""
    net = mlp((8, 48, 48, 1))
    if sick:
        enlarge(net, "fc3", 1e4)
    return regress(net, housing(), seed, adam(5e-3))


@case(
    cause=CAUSE,
    form="cold-start",
    architecture="regression MLP",
    optimizer="AdamW fused",
    culprit=["net.fc2"],
    chance=0.0,
)
def regression_one_layer_1e4_fused(seed: int, sick: bool) -> Task:
    """The middle layer of a regression starts 10⁴ times too large, under the fused AdamW."""
    net = mlp((8, 48, 48, 1))
    if sick:
        enlarge(net, "fc2", 1e4)
    return regress(net, housing(), seed, adamw(5e-3, fused=True))
