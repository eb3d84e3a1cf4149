"""Building the module of a bundle again: from saved hyperparameters, a checkpoint, or by a function of the user's."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.evidence import Bundle
from lightning_gradguard.evidence.plain import rebuilt
from lightning_gradguard.layers.names import clean

Source = nn.Module | Callable[..., Any]


class ReplayError(RuntimeError):
    """A step cannot be computed again; the message says what is missing."""


def named(dotted: str) -> Any:
    """Return the object of a dotted name, looked for in the working directory too.

    Raises:
        ReplayError: There is no such thing.
    """
    module, _, name = dotted.replace(":", ".").rpartition(".")
    if not module:
        raise ReplayError(f"{dotted!r} names no module and object: write it as package.module.Name")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ReplayError(f"{dotted!r} cannot be found: {error}") from error


def build(bundle: Bundle, source: Source, ckpt: str | os.PathLike[str] | None = None) -> nn.Module:
    """Return the module with the weights that it had before the step.

    Args:
        bundle: The step.
        source: The module itself, its class, or a function that makes it.
        ckpt: A checkpoint that holds the weights, where the bundle does not, and a Lightning module's hyperparameters.

    Raises:
        ReplayError: It cannot be made, or its weights are nowhere.
    """
    if ckpt is not None and not Path(ckpt).exists():
        raise ReplayError(f"there is no checkpoint at {ckpt}")
    module = source if isinstance(source, nn.Module) else _made(bundle, source, ckpt)
    if not isinstance(module, nn.Module):
        raise ReplayError(f"{source!r} makes a {type(module).__name__}, which is no torch module")
    weights = bundle.weights or (_weights_of(ckpt) if ckpt is not None else {})
    if not weights and not isinstance(source, nn.Module):
        where = f"; the run's newest checkpoint was {bundle.weights_from}" if bundle.weights_from else ""
        raise ReplayError(f"the bundle holds no weights: name a checkpoint{where}")
    load(module, weights)
    return module


def _made(bundle: Bundle, source: Callable[..., Any], ckpt: str | os.PathLike[str] | None) -> Any:
    loads = getattr(source, "load_from_checkpoint", None)
    try:
        if loads is not None and ckpt is not None:
            return loads(ckpt, map_location="cpu")
        given = rebuilt(bundle.hyperparameters) if isinstance(source, type) else {}
        return source(**given)
    except Exception as error:
        told = "its checkpoint" if ckpt is not None else "its hyperparameters" if bundle.hyperparameters else "nothing"
        raise ReplayError(
            f"{getattr(source, '__name__', source)} cannot be made of {told} ({error}): "
            "name a function that returns it, as "
            "a factory"
        ) from error


def _weights_of(ckpt: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        found = torch.load(ckpt, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ReplayError(
            f"{ckpt} cannot be loaded without executing what is in it ({type(error).__name__})"
        ) from error
    state = found.get("state_dict", found)
    return {clean(name): value for name, value in state.items() if isinstance(value, Tensor)}


@torch.no_grad()
def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write weights into a module, in the precision that they have.

    Raises:
        ReplayError: A parameter is missing among them, or has another shape.
    """
    if not weights:
        return
    wrong = []
    for name, parameter in module.named_parameters():
        value = weights.get(clean(name))
        if value is None or value.shape != parameter.shape:
            wrong.append(name)
        else:
            parameter.data = value.to(parameter.device, copy=True)
    if wrong:
        raise ReplayError(f"the weights do not fit the module: {', '.join(wrong[:5])} are missing or of another shape")
    for name, buffer in module.named_buffers():
        value = weights.get(clean(name))
        if value is not None and value.shape == buffer.shape:
            buffer.data = value.to(buffer.device, copy=True)
