"""What a layer's fan calls for: the size that its weights have in a healthy initialisation."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_gradguard.layers.names import kind_of


def fans(module: nn.Module, name: str) -> tuple[float, float] | None:
    """Return ``(fan_in, fan_out)`` of a weight: terms summed per output, and per input gradient; None if unknown.

    Groups count, and strides where they transpose: an element of a transposed convolution's output sums ``in / groups *
    k / stride`` terms. Recurrent weights hold their gates side by side, so the fan of one gate is the fan of all.
    """
    weight = getattr(module, name, None) if name in module._parameters else None
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return None
    if isinstance(module, _ConvNd):
        kernel = math.prod(module.kernel_size)
        stride = math.prod(module.stride)
        inward = module.in_channels / module.groups * kernel
        outward = module.out_channels / module.groups * kernel
        if isinstance(module, _ConvTransposeNd):
            return max(inward / stride, 1.0), outward
        return inward, outward
    if isinstance(module, nn.Bilinear):
        return float(module.in1_features * module.in2_features), float(module.out_features)
    known = isinstance(module, nn.Linear) and name == "weight"
    known |= isinstance(module, nn.MultiheadAttention) and name in _PROJECTIONS
    known |= isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith("weight_")
    if not known:
        return None
    gates = 3 if name == "in_proj_weight" else gates_of(module)
    return float(weight.shape[1]), weight.shape[0] / gates


_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def gates_of(module: nn.Module) -> int:
    """Return how many gates a layer's weights hold, stacked along the first dimension."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return 4
    return 3 if isinstance(module, (nn.GRU, nn.GRUCell)) else 1


def expected_rms(module: nn.Module, name: str) -> float | None:
    """Return the RMS at which the parameter ``name`` of ``module`` neither grows nor shrinks a signal; None if unknown.

    A weight that sums ``fan_in`` independent terms keeps their RMS at ``1 / sqrt(fan_in)`` (LeCun et al., 1998). Usual
    initialisations lie between 0 and ``sqrt(2)`` times this (PyTorch's default 0.58, Glorot, He). He's fan-out mode is
    larger on layers that narrow, so these are given the geometric mean of their fans. Normalisation weights and
    embeddings are expected at 1; vectors other than these, and custom parameters, are unknown.
    """
    kind = kind_of(module)
    if name == "weight" and kind in ("norm", "embedding"):
        return 1.0
    found = fans(module, name)
    if found is None:
        return None
    inward, outward = found
    if kind == "recurrent" and name.startswith("weight_ih"):
        inward = min(inward, outward)  # PyTorch draws both matrices by the hidden size
    return 1.0 / math.sqrt(max(1.0, min(inward, math.sqrt(inward * outward))))
