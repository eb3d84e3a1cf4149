"""Layers by name: which module owns a parameter, and what kind of layer it is."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

Kind = Literal["linear", "conv", "recurrent", "attention", "embedding", "norm", "function", "other"]
"""What a module is; a *function* has neither parameters nor parts: an activation, or a loss."""
SCALING = frozenset[Kind](("linear", "conv", "recurrent", "attention"))
"""Kinds of layers that give what they take in a scale of their own."""

# torch.compile, FSDP1, the checkpoint wrapper and Fabric insert these; attribute look-up passes through them, so names
# may drop them.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


# The same few names are asked for again and again: at each of the first steps, at each snapshot, and of every suspect.
@functools.lru_cache(maxsize=2**14)
def clean(name: str) -> str:
    """Strip what wrappers put into a qualified name: ``net._orig_mod.0.weight`` -> ``net.0.weight``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@functools.lru_cache(maxsize=2**14)
def layer_of(name: str) -> str:
    """Return the layer that owns the parameter ``name``: ``net.0.weight`` -> ``net.0``; the root module is ``""``.

    A parametrised weight belongs to the layer it parametrises: ``fc.parametrizations.weight.original0`` -> ``fc``.
    """
    path = clean(name).rpartition(".")[0]
    head, inside, _ = f".{path}.".partition(".parametrizations.")
    return head.strip(".") if inside else path


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own parameters directly, by cleaned name, in the order of registration."""
    modules = {clean(name): child for name, child in module.named_modules()}
    owners = dict.fromkeys(layer_of(name) for name, _ in module.named_parameters())
    return {name: modules[name] for name in owners if name in modules}


def parameters_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return a layer's own initialised parameters by local name, the originals of parametrised ones included."""
    own = dict(layer.named_parameters(recurse=False))
    lists = layer.get_submodule("parametrizations") if "parametrizations" in layer._modules else None
    if lists is not None:
        own.update({f"parametrizations.{name}": p for name, p in lists.named_parameters()})
    return {name: p for name, p in own.items() if not is_lazy(p)}


def kind_of(layer: nn.Module) -> Kind:
    """Classify a layer; a class whose name says norm and whose parameters are vectors counts as a normalisation."""
    if isinstance(layer, (nn.Linear, nn.Bilinear)):
        return "linear"
    if isinstance(layer, _ConvNd):
        return "conv"
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent"
    if isinstance(layer, nn.MultiheadAttention):
        return "attention"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(layer, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        return "norm"
    vectors = not any(True for _ in layer.children()) and all(p.ndim <= 1 for p in layer.parameters(recurse=False))
    return "norm" if vectors and "norm" in type(layer).__name__.lower() else "other"


def select_layers(module: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Return the layers whose names match any of the shell-style ``patterns``.

    Raises:
        ValueError: If a pattern matches no layer; the message lists the layers there are.
    """
    names, chosen = list(layers(module)), set[str]()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"layer pattern {pattern!r} matches no layer; the layers are: {', '.join(names)}")
        chosen |= found
    return chosen


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside what Fabric and DDP have put around it, which is no layer and has no place in names."""
    while True:
        if type(module).__name__ == "_FabricModule":
            module = module.get_submodule("_forward_module")
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def own_parameters(names: Iterable[str]) -> str:
    """Return those of the qualified ``names`` that are the root module's own: it has no name, and is called by them.

    >>> own_parameters(["scale", "net.0.weight"])
    'scale'
    """
    return ", ".join(name for name in names if not layer_of(name))


def compiled(module: nn.Module) -> bool:
    """Return whether a part of ``module`` is compiled: hooks that come and go would make it compile again."""
    return any(
        getattr(m, "_compiled_call_impl", None) is not None
        or getattr(m, "_compiler_ctx", None) is not None  # Lightning's way
        or type(m).__name__ == "OptimizedModule"
        for m in module.modules()
    )
