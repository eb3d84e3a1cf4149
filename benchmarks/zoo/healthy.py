"""Healthy runs that look dangerous: a guard that touches one of these has done harm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR, OneCycleLR

from benchmarks.zoo.adversarial import gan
from benchmarks.zoo.case import Task, adam, adamw, case, classify, r_squared, reconstruct, regress, rmsprop, sgd
from benchmarks.zoo.data import adding, breast_cancer, diabetes, digits, fashion, housing, markov
from benchmarks.zoo.initialisation import enlarge
from benchmarks.zoo.models import Inception, Recurrent, ResNet, Transformer, autoencoder, mlp, plain_cnn
from benchmarks.zoo.precision import half


@case(kind="healthy", cause="batch of two", architecture="MLP", optimizer="SGD", steps=10000)
def batch_of_two(seed: int, sick: bool) -> Task:
    """Gradients of two samples are as noisy as they get."""
    return classify(mlp((64, 64, 10)), digits(), seed, sgd(0.003), size=2)


@case(kind="healthy", cause="warm restarts", architecture="plain CNN", optimizer="SGD", steps=500)
def warm_restarts(seed: int, sick: bool) -> Task:
    """The rate jumps up by a hundred times at each restart."""
    return classify(
        plain_cnn(4),
        digits(),
        seed,
        sgd(0.05),
        scheduler=lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 100, eta_min=5e-4),
    )


@case(kind="healthy", cause="one-cycle", architecture="ResNet with BatchNorm", optimizer="SGD", steps=400)
def one_cycle(seed: int, sick: bool) -> Task:
    """Super-convergence: a peak rate of 0.3 (Smith & Topin, 2018)."""
    return classify(
        ResNet(norm=True, width=8),
        digits(),
        seed,
        sgd(0.02),
        scheduler=lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=410),
    )


@case(kind="healthy", cause="distribution shift", architecture="MLP", optimizer="Adam", steps=1500)
def distribution_shift(seed: int, sick: bool) -> Task:
    """Half-way the images are inverted: the loss jumps, and the gradients are right to."""

    def invert(k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x if k < 750 or k % 2 else -x), y

    return classify(mlp((64, 64, 10)), digits(), seed, adam(3e-3), transform=invert)


@case(kind="healthy", cause="label noise", architecture="plain CNN", optimizer="AdamW", steps=400)
def label_noise(seed: int, sick: bool) -> Task:
    """A fifth of all labels are wrong: confident mistakes give large gradients until the end."""

    def confuse(k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k)
        wrong = torch.rand(len(y), generator=generator) < 0.2
        return x, torch.where(wrong, torch.randint(0, 10, y.shape, generator=generator), y)

    return classify(plain_cnn(4), fashion(), seed, adamw(3e-3), transform=confuse)


@case(kind="healthy", cause="dropout", architecture="MLP", optimizer="SGD", steps=3000)
def heavy_dropout(seed: int, sick: bool) -> Task:
    """Half of the units are dropped; a guard that draws random numbers would change the run."""
    return classify(mlp((64, 128, 128, 10), dropout=0.5), digits(), seed, sgd(0.02))


@case(kind="healthy", cause="fine-tuning", architecture="plain CNN", optimizer="Adam", steps=500)
def frozen_layers(seed: int, sick: bool) -> Task:
    """Only the last convolution and a new head are trained."""
    net = plain_cnn(4)
    for name in ("conv1", "conv2", "conv3"):
        net.get_submodule(name).requires_grad_(False)
    return classify(net, digits(), seed, adam(5e-3))


@case(
    kind="healthy",
    cause="gradient accumulation",
    architecture="MLP",
    optimizer="AdamW fused",
    steps=300,
    trainer=lambda: {"accumulate_grad_batches": 4},
)
def accumulation(seed: int, sick: bool) -> Task:
    """Four micro-batches a step, fused AdamW."""
    return classify(mlp((64, 64, 64, 10)), digits(), seed, adamw(3e-3, fused=True), size=8)


@case(
    kind="healthy", cause="decay of the norm", architecture="linear regression", optimizer="SGD", chance=0.0, steps=2500
)
def norm_decays_1000x(seed: int, sick: bool) -> Task:
    """A noiseless linear problem: the gradient norm falls by orders of magnitude, then the rate does."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(8, 1, generator=generator) / 8**0.5

    def exact(k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, x @ weights

    task = regress(mlp((8, 1)), housing(), seed, sgd(0.01), transform=exact)
    x = housing().x_test
    return task._replace(evaluate=r_squared(x, x @ weights))


@case(kind="healthy", cause="early growth", architecture="plain CNN", optimizer="SGD", steps=600)
def honest_growth(seed: int, sick: bool) -> Task:
    """Half of He's gain: gradients grow by orders of magnitude as the net leaves its plateau."""
    net = plain_cnn(4)
    for i in range(1, 5):
        enlarge(net, f"conv{i}", 0.55)
    return classify(net, digits(), seed, sgd(0.05))


class Bag(nn.Module):
    """Mean of the embeddings of a sequence's tokens, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(2000, 16, mode="mean", sparse=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Turn pixels into tokens ``place x brightness``, sum them up, classify."""
        levels = ((x.flatten(1) + 1) * 8).long().clamp(0, 16)
        out: Tensor = self.head(self.embed(levels + 17 * torch.arange(64)))
        return out


@case(kind="healthy", cause="sparse embeddings", architecture="embedding bag", optimizer="SGD", steps=3000)
def sparse_embeddings(seed: int, sick: bool) -> Task:
    """Sparse gradients with coalescing to do; no momentum, as most sparse training."""
    return classify(Bag(), digits(), seed, sgd(2.0, momentum=0.0))


@case(kind="healthy", cause="heavy tails", architecture="GPT (pre-LN)", optimizer="AdamW", chance=0.0625, steps=400)
def gpt_plain(seed: int, sick: bool) -> Task:
    """A small GPT."""
    return classify(Transformer(False), markov(), seed, adamw(3e-3))


@case(kind="healthy", cause="post-LN", architecture="ViT (post-LN)", optimizer="Adam", steps=400)
def vit_post_norm(seed: int, sick: bool) -> Task:
    """Post-LN at a sane rate; its gradients are uneven over the depth."""
    return classify(Transformer(True, pre=False), digits(), seed, adam(2e-3))


@case(kind="healthy", cause="recurrence", architecture="LSTM", optimizer="RMSprop", chance=0.0, steps=500)
def lstm_adding(seed: int, sick: bool) -> Task:
    """The adding problem: a long plateau, then a sudden descent with large gradients."""
    return regress(Recurrent("lstm", 2, 24, 1), adding(), seed, rmsprop(5e-3))


@case(kind="healthy", cause="two optimizers", architecture="GAN", optimizer="Adam", chance=0.0, steps=1400)
def gan_plain(seed: int, sick: bool) -> Task:
    """A GAN whose two parts push each other's gradients up and down."""
    return gan(seed, (adam(2e-3, betas=(0.5, 0.99)), adam(2e-3, betas=(0.5, 0.99))))


@case(kind="healthy", cause="GradScaler", architecture="MLP", optimizer="SGD", trainer=half, steps=400)
def half_precision(seed: int, sick: bool) -> Task:
    """The scaler finds its scale by overflowing now and then: routine."""
    return classify(mlp((64, 64, 64, 10)), digits(), seed, sgd(0.02))


@case(kind="healthy", cause="interpolation", architecture="autoencoder", optimizer="Adam", chance=0.0, steps=2000)
def autoencoder_plain(seed: int, sick: bool) -> Task:
    """An autoencoder that keeps improving."""
    return reconstruct(autoencoder(), digits(), seed, adam(3e-3), size=64)


@case(kind="healthy", cause="interpolation", architecture="MLP", optimizer="Adam", chance=0.63, steps=3000)
def tabular_interpolates(seed: int, sick: bool) -> Task:
    """A net that fits its data perfectly: norms fall to nothing, with spikes whenever one sample is wrong."""
    return classify(mlp((30, 64, 64, 2)), breast_cancer(), seed, adam(3e-3))


@case(kind="healthy", cause="rare samples", architecture="MLP", optimizer="SGD", chance=0.0, steps=4000)
def small_noisy_regression(seed: int, sick: bool) -> Task:
    """342 patients, batches of eight, half of the variance unexplainable."""
    return regress(mlp((10, 16, 1)), diabetes(), seed, sgd(0.003), size=8, scheduler=lambda o: ExponentialLR(o, 0.998))


@case(kind="healthy", cause="several branches", architecture="Inception", optimizer="RMSprop", steps=400)
def inception_plain(seed: int, sick: bool) -> Task:
    """RMSprop's first updates are ten times the rate: dangerous to look at, and fine."""
    return classify(Inception(), digits(), seed, rmsprop(1e-3))


@case(kind="healthy", cause="linear warm-up", architecture="MLP", optimizer="Adam", steps=300)
def rising_rate(seed: int, sick: bool) -> Task:
    """A range test that stops in time: the rate grows by 100 times, from very little to the sane one."""
    return classify(
        mlp((64, 64, 10)), digits(), seed, adam(3e-5), scheduler=lambda o: ExponentialLR(o, 100 ** (1 / 300))
    )
