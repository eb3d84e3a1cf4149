"""The networks of the field trial, all small enough for some milliseconds a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(
    inputs: int, width: int, outputs: int, *, depth: int = 3, act: Any = nn.ReLU, norm: Any = None, dropout: float = 0.0
) -> nn.Sequential:
    """``depth`` linear layers; He's initialisation, since torch's own starves a deep one."""
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        linear = nn.Linear(inputs if i == 0 else width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear" if act in (nn.Tanh, nn.SELU) else "relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, *([norm(width)] if norm else []), act(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(norm: bool = False) -> nn.Sequential:
    """Three convolutions over 8 × 8 images that come as rows of 64."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for a, b, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a way around them."""

    def __init__(self, width: int, zero: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def resnet(zero: bool = False) -> nn.Sequential:
    """Three residual blocks."""
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *stem, *(Block(16, zero) for _ in range(3)), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )


def spectral() -> nn.Sequential:
    """Weights divided by their largest singular value, by a parametrisation."""
    norm = torch.nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(64, 64)), nn.ReLU(), norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10))


class StochasticDepth(nn.Module):
    """Residual layers, each left out one time in three, so that its parameters have no gradient then."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 48), nn.Linear(48, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.ReLU()) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) > 1 / 3:
                x = x + block(x)
        return self.head(x)


class Mixture(nn.Module):
    """Four experts; each example goes to the best one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(64, 4), nn.Linear(32, 10)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 32)
        for k, expert in enumerate(self.experts):
            mine = torch.nonzero(chosen == k)[:, 0]
            if len(mine):
                out = out.index_add(0, mine, expert(x[mine]) * weight[mine].unsqueeze(1))
        return self.head(F.relu(out))


def encoder(width: int, layers: int, pre: bool) -> nn.TransformerEncoder:
    """``torch``'s own transformer."""
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=pre)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width) if pre else None, enable_nested_tensor=False)


class VisionTransformer(nn.Module):
    """Sixteen patches of four pixels."""

    def __init__(self, pre: bool) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(1, 32, 2, 2), nn.Linear(32, 10)
        self.place = nn.Parameter(0.02 * torch.randn(16, 32))
        self.encoder = encoder(32, 3, pre)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(tokens).mean(1))


class GPT(nn.Module):
    """Next-token prediction over eleven tokens."""

    def __init__(self, pre: bool, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 32), nn.Embedding(32, 32)
        self.encoder, self.head = encoder(32, 2, pre), nn.Linear(32, 11, bias=False)
        if tied:
            nn.init.normal_(self.embed.weight, std=0.2)
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.head(self.encoder(self.embed(tokens) + self.place(torch.arange(length)), mask))


class Recurrent(nn.Module):
    """One recurrent layer and a head on its last state."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.core, self.head = kind(2, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


class Speech(nn.Module):
    """Frames to symbols, blank included."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.LSTM(6, 24, batch_first=True, bidirectional=True), nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0])


class Bag(nn.Module):
    """Mean of word vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(200, 16), mlp(16, 32, 4, depth=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


class GraphNet(nn.Module):
    """Three rounds of mean aggregation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(a @ x))
        return self.head(x)


class VAE(nn.Module):
    """Eight latent dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (log_var / 2).exp() * torch.randn_like(mean)), mean, log_var


class UNet(nn.Module):
    """Down once, up once, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.down = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(24, 24, 3, padding=1), nn.ConvTranspose2d(24, 12, 2, 2)
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.inner(x))
        b = F.relu(self.middle(F.relu(self.down(a))))
        return self.out(torch.cat([a, F.relu(self.up(b))], 1))


class TwoTowers(nn.Module):
    """Two encoders and a learned temperature, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(64, 64, 16), mlp(64, 64, 16)
        self.log_scale = nn.Parameter(torch.tensor(2.6))


class Flow(nn.Module):
    """Six affine couplings on the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp(1, 32, 2, act=nn.Tanh) for _ in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            a, b = x.chunk(2, 1)
            log_scale, shift = layer(a).chunk(2, 1)
            x = torch.cat([b * log_scale.exp() + shift, a], 1)
            log_det = log_det + log_scale.squeeze(1)
        return x, log_det


class ODE(nn.Module):
    """A neural differential equation by ten Euler steps: the same weights ten times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.field, self.head = nn.Linear(16, 32), mlp(32, 32, 32, depth=2, act=nn.Tanh), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(10):
            x = x + 0.1 * self.field(x)
        return self.head(x)


class QPair(nn.Module):
    """A network of action values, and the copy it may chase."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = mlp(10, 32, 2), mlp(10, 32, 2).requires_grad_(False)


class Adversaries(nn.Module):
    """A generator and a critic on the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(4, 48, 2), mlp(2, 48, 1)
