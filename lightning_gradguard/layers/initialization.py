"""Initialisations that fit a layer's type and the activation that follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_gradguard.layers.fan import fans
from lightning_gradguard.layers.names import SCALING, clean, kind_of

Scheme = Literal["Kaiming normal", "Xavier normal", "LeCun normal", "truncated normal", "orthogonal", "constant"]

_RECTIFIERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
_SQUASHERS = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid)
_SELF_NORMALISING = (nn.SELU,)
# GPT-2's 0.02 at its width of 768, carried to other widths.
_TRANSFORMER = 0.02 * math.sqrt(768.0)


@dataclass(frozen=True, slots=True)
class Initialisation:
    """A scheme and the standard deviation of its draws."""

    scheme: Scheme
    std: float


def fitting(root: nn.Module, layer: str, name: str) -> Initialisation | None:
    """Choose the initialisation of the parameter ``name`` of ``layer``; None if its role is not known.

    He et al., 2015, before rectifiers; Glorot and Bengio, 2010, before squashers; LeCun before SELU and on the output
    layer; Saxe et al., 2014, for recurrent matrices; truncated normal in transformers.
    """
    modules = {clean(key): child for key, child in root.named_modules()}
    module = modules[layer]
    kind = kind_of(module)
    if kind == "norm" and name in ("weight", "bias"):
        return Initialisation("constant", 1.0 if name == "weight" else 0.0)
    if name.startswith("bias") or name == "in_proj_bias":
        return Initialisation("constant", 0.0)
    transformer = any(kind_of(child) == "attention" or isinstance(child, nn.LayerNorm) for child in modules.values())
    if kind == "embedding" and name == "weight":
        if transformer:
            return Initialisation("truncated normal", 0.02)
        # Where a layer takes it in, that brings its scale along; products of rows are of the order of 1 by themselves.
        alone = not any(kind_of(child) in SCALING for child in modules.values())
        return Initialisation("LeCun normal", 1.0 / math.sqrt(module.weight.shape[1]) if alone else 1.0)
    found = fans(module, name)
    if found is None:
        return None
    inward, outward = found
    if kind == "recurrent":
        scheme: Scheme = "orthogonal" if name.startswith("weight_hh") else "Xavier normal"
        return Initialisation(
            scheme, 1.0 / math.sqrt(inward) if scheme == "orthogonal" else math.sqrt(2.0 / (inward + outward))
        )
    if kind == "attention" or (transformer and kind == "linear"):
        return Initialisation("truncated normal", _TRANSFORMER / math.sqrt(inward))
    return _before(_activation_after(modules, layer), inward, outward)


def _before(activation: type[nn.Module], inward: float, outward: float) -> Initialisation:
    if issubclass(activation, _SQUASHERS):
        return Initialisation("Xavier normal", math.sqrt(2.0 / (inward + outward)))
    if issubclass(activation, _RECTIFIERS):
        return Initialisation("Kaiming normal", math.sqrt(2.0 / inward))
    return Initialisation("LeCun normal", math.sqrt(1.0 / inward))


def _activation_after(modules: dict[str, nn.Module], layer: str) -> type[nn.Module]:
    """Return the activation registered between this layer and the next, ``nn.Identity`` for the last layer.

    Where there is none (it is called as a function, or one module serves many layers) the model's commonest, or else
    ReLU.
    """
    known = (*_RECTIFIERS, *_SQUASHERS, *_SELF_NORMALISING)
    names = list(modules)
    for name in names[names.index(layer) + 1 :]:
        if isinstance(modules[name], known):
            return type(modules[name])
        if kind_of(modules[name]) not in ("norm", "other"):
            break
    else:
        return nn.Identity
    kinds = [type(child) for child in modules.values() if isinstance(child, known)]
    return max(kinds, key=kinds.count, default=nn.ReLU)


def draw(initialisation: Initialisation, shape: torch.Size, gates: int, generator: torch.Generator) -> Tensor:
    """Draw float32 values on the host from a private ``generator``: ranks agree, and the user's stream is left alone.

    An orthogonal matrix is drawn per gate: a stack of ``gates`` square blocks along the first dimension.
    """
    if initialisation.scheme == "constant":
        return torch.full(shape, initialisation.std, dtype=torch.float32)
    if initialisation.scheme == "orthogonal":
        blocks = [
            torch.randn(shape[0] // gates, *shape[1:], generator=generator, dtype=torch.float32) for _ in range(gates)
        ]
        return torch.cat([_orthogonal(block) for block in blocks])
    values = torch.randn(shape, generator=generator, dtype=torch.float32)
    if initialisation.scheme == "truncated normal":
        # Beyond two sigma, drawn again; a value that misses thrice running (1 in 10,000) is cut.
        for _ in range(2):
            values = torch.where(
                values.abs() > 2.0, torch.randn(shape, generator=generator, dtype=torch.float32), values
            )
        values.clamp_(-2.0, 2.0)
    return values.mul_(initialisation.std)


def _orthogonal(block: Tensor) -> Tensor:
    tall = block.shape[0] >= block.shape[1]
    q, r = torch.linalg.qr(block if tall else block.T)
    q = torch.mul(q, r.diagonal().sign())  # makes the draw uniform over rotations
    return q if tall else q.transpose(0, 1)
