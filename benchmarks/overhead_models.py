"""The models whose gradients are measured: only their parameters matter, so none has a forward pass worth using."""

from __future__ import annotations

import torch
import torchvision
from torch import nn


class Block(nn.Module):
    """The parameters of a GPT-2 block: twelve tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class GPT(nn.Module):
    """The parameters of a GPT: 148 tensors and 17 million elements by default; the head is the embedding."""

    def __init__(self, width: int = 288, depth: int = 12, vocabulary: int = 16384, context: int = 256) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)


def resnet18() -> nn.Module:
    """Return ResNet-18: 62 tensors, 11.7 million elements, 20 BatchNorms whose running statistics the guard keeps."""
    return torchvision.models.resnet18(weights=None)


def many_tensors(count: int = 1000, elements: int = 1024) -> nn.Module:
    """Return ``count`` layers of one weight each, with (about) ``elements`` elements."""
    inner = min(32, elements)
    return nn.Sequential(*(nn.Linear(inner, max(elements // inner, 1), bias=False) for _ in range(count)))


def with_gradients(model: nn.Module) -> list[nn.Parameter]:
    """Give every parameter a random gradient, of global norm 0.5, and return the parameters."""
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 0.5 / float(norm))
    return parameters
