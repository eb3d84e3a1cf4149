"""Small nets whose layers have names, so that a case can say which one is to blame."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """Build ``fc1 … fcN`` with He initialisation, flattening the input."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    last = len(sizes) - 1
    for i in range(1, last + 1):
        layers[f"fc{i}"] = he(nn.Linear(sizes[i - 1], sizes[i]))
        if i < last:
            layers[f"act{i}"] = activation()
            if dropout:
                layers[f"drop{i}"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def he(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Redraw a layer by He et al. (2015), with zero bias."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def plain_cnn(depth: int = 6, width: int = 12, norm: bool = False) -> nn.Sequential:
    """Build ``conv1 … convN`` without shortcuts, mean pooling and ``head``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        stride = 2 if i == 2 else 1
        layers[f"conv{i}"] = he(nn.Conv2d(1 if i == 1 else width, width, 3, stride, 1))
        if norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"act{i}"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(width * 4, 10)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """``x + conv2(relu(conv1(x)))`` with or without BatchNorm."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = he(nn.Conv2d(width, width, 3, 1, 1)), he(nn.Conv2d(width, width, 3, 1, 1))
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        if not norm:  # Fixup's idea (Zhang et al., 2019): without a norm the branch has to start small
            with torch.no_grad():
                self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        branch: Tensor = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(x + branch)


class ResNet(nn.Module):
    """A stem, ``blocks`` residual blocks, mean pooling and a head."""

    def __init__(self, norm: bool, blocks: int = 3, width: int = 12) -> None:
        super().__init__()
        self.stem = he(nn.Conv2d(1, width, 3, 2, 1))
        self.blocks = nn.ModuleList(ResidualBlock(width, norm) for _ in range(blocks))
        self.head = nn.Linear(width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return out


class Mixed(nn.Module):
    """An Inception block: 1x1, 3x3 and 5x5 side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.narrow = he(nn.Conv2d(inputs, width, 1))
        self.middle = he(nn.Conv2d(inputs, width, 3, 1, 1))
        self.wide = he(nn.Conv2d(inputs, width, 5, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the three branches."""
        return torch.relu(torch.cat([self.narrow(x), self.middle(x), self.wide(x)], 1))


class Inception(nn.Module):
    """A stem, three :class:`Mixed` blocks and a head (after Szegedy et al., 2015)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = he(nn.Conv2d(1, 3 * width, 3, 2, 1))
        self.mixed1, self.mixed2, self.mixed3 = (Mixed(3 * width, width) for _ in range(3))
        self.head = nn.Linear(3 * width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.mixed3(self.mixed2(self.mixed1(torch.relu(self.stem(x)))))
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return out


class Recurrent(nn.Module):
    """An RNN, LSTM or GRU over a sequence, and a head on the last state. Images are read row by row."""

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        if kind == "relu":
            self.rnn: nn.RNNBase = nn.RNN(inputs, hidden, nonlinearity="relu", batch_first=True)
            nn.init.eye_(self.recurrent_weight)  # IRNN (Le et al., 2015)
        else:
            self.rnn = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind](inputs, hidden, batch_first=True)
            nn.init.orthogonal_(self.recurrent_weight)
        self.head = nn.Linear(hidden, outputs)

    @property
    def recurrent_weight(self) -> Tensor:
        """Give the matrix that is applied at every step of the sequence."""
        weight = self.rnn.weight_hh_l0
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Read the sequence, answer at its end."""
        if x.dim() == 4:
            x = x.squeeze(1)
        states, _ = self.rnn(x)
        out: Tensor = self.head(states[:, -1])
        return out


class Attention(nn.Module):
    """Multi-head self-attention with separate, named projections."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.project = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(b, t, d))
        return out


class TransformerBlock(nn.Module):
    """Attention and a two-layer MLP, each with a shortcut, normalised before (pre-LN) or after (post-LN)."""

    def __init__(self, width: int, heads: int, causal: bool, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.attention = Attention(width, heads, causal)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens, then each by itself."""
        if self.pre:
            x = x + self.attention(self.norm1(x))
            x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
            return x
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return out


class Transformer(nn.Module):
    """A ViT over 2x2 patches of 8x8 images, or a GPT over 16 tokens."""

    def __init__(self, image: bool, pre: bool = True, depth: int = 2, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.image = image
        self.embed = nn.Linear(4, width) if image else nn.Embedding(16, width)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, not image, pre) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10 if image else 16)

    def forward(self, x: Tensor) -> Tensor:
        """Give class logits for images, next-token logits (at every place) for sequences."""
        if self.image:
            x = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        out: Tensor = self.head(x.mean(1) if self.image else x)
        return out


def autoencoder() -> nn.Sequential:
    """Squeeze an 8x8 image into 12 numbers and back."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    sizes = (64, 48, 12, 48, 64)
    names = ("encoder1", "encoder2", "decoder1", "decoder2")
    for i, name in enumerate(names):
        layers[name] = he(nn.Linear(sizes[i], sizes[i + 1]))
        if name not in ("encoder2", "decoder2"):
            layers[f"act{i + 1}"] = nn.ReLU()
    return nn.Sequential(layers)
