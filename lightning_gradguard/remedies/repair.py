"""Repair the parameters of one layer in place: zero stray elements, rescale, or draw anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.layers.fan import gates_of
from lightning_gradguard.layers.initialization import Initialisation, draw, fitting
from lightning_gradguard.layers.names import kind_of

# Power of a unit's output that the mean of its weights makes, over that of their deviations: outputs are all alike, and
# no scale repairs that.
_OUTWEIGHED = 9.0
# A few elements this far above the median carry no knowledge (a flipped bit); the others do.
_STRAY, _FEW = 50.0, 0.01
# Times what the fitting initialisation has; less than this is not what made the layer stand out.
_TOO_LARGE = 1.5
_TOO_LARGE_A_BIAS = 10.0


@dataclass(frozen=True, slots=True)
class Patient:
    """A layer under repair.

    Args:
        root: The root module, in which the following activation is looked up.
        name: Qualified name of the layer.
        layer: The layer.
        parameters: Its parameters that may be changed, by local name; of a sharded one a copy of the whole.
        live: The parameters themselves.
        gain: Its measured forward gain, or None.
        generator: Private generator on the host.
    """

    root: nn.Module
    name: str
    layer: nn.Module
    parameters: dict[str, Tensor]
    live: dict[str, nn.Parameter]
    gain: float | None
    generator: torch.Generator


def repair(patient: Patient, *, redraw: bool = True, keep: bool = True, rescale: bool = True) -> list[str]:
    """Repair each parameter that is visibly bad, or else all matrices; return in words what was done.

    Args:
        patient: The layer.
        redraw: Whether drawing anew is allowed.
        rescale: Whether weights that are merely too large are rescaled; without it only stray elements are repaired.
        keep: Whether to keep the structure of the weights where there is any; False draws everything anew.
    """
    done = [how for name in patient.parameters if (how := _mend_one(patient, name, redraw, keep, rescale))]
    if not done and redraw:
        # Large gains of weights that are not large come from what they have in common, which no rescaling repairs.
        done = [how for name, p in patient.parameters.items() if p.ndim >= 2 and (how := _redraw(patient, name))]
    return list(dict.fromkeys(done)) or (_divide(patient) if rescale else [])


def _mend_one(patient: Patient, name: str, redraw: bool, keep: bool, rescale: bool) -> str:
    value = effective(patient.layer, name, patient.parameters[name]).detach().cpu().double()
    plan = fitting(patient.root, patient.name, local(name))
    stray = _strays(value)
    if keep and bool(stray.any()):
        value = value.masked_fill(stray, 0.0)
        write(patient.layer, name, patient.parameters[name], value)
    size = norm(value) / math.sqrt(max(value.numel(), 1))
    zeroed = f"{int(stray.sum())} stray elements of {local(name)} set to zero" if keep and bool(stray.any()) else ""
    if plan is None or not rescale:
        return zeroed
    if plan.scheme == "constant" and plan.std == 0.0:
        reset = not size <= _TOO_LARGE_A_BIAS or (not keep and kind_of(patient.layer) != "recurrent")
        return _redraw(patient, name) if reset else zeroed
    constant = plan.scheme != "constant" and value.numel() >= 16 and _alike(value)
    if not keep or (redraw and (constant or not math.isfinite(size))):
        return _redraw(patient, name)
    if not _TOO_LARGE * plan.std < size < math.inf:
        return zeroed
    write(patient.layer, name, patient.parameters[name], value * (plan.std / size))
    return f"{local(name)} rescaled from RMS {size:.3g} to {plan.std:.3g}"


def _redraw(patient: Patient, name: str) -> str:
    plan = fitting(patient.root, patient.name, local(name))
    if plan is None:
        return ""
    values = _drawn(patient, name, plan)
    write(patient.layer, name, patient.parameters[name], values)
    how = f"set to {plan.std:g}" if plan.scheme == "constant" else f"redrawn ({plan.scheme}, std {plan.std:.3g})"
    return f"{local(name)} {how}"


def _alike(value: Tensor) -> bool:
    """Return whether the mean of a matrix outweighs its deviations in what it makes of inputs of one sign."""
    return float(value.mean()) ** 2 * (value.numel() / len(value)) > _OUTWEIGHED * float(value.var(correction=0))


def _drawn(patient: Patient, name: str, plan: Initialisation) -> Tensor:
    shape = effective(patient.layer, name, patient.parameters[name]).shape
    values = draw(plan, shape, gates_of(patient.layer), patient.generator)
    padding = getattr(patient.layer, "padding_idx", None)
    if padding is not None and local(name) == "weight":
        values[padding] = 0.0
    return values


def _divide(patient: Patient) -> list[str]:
    """Divide the matrices of a layer of unknown type by its measured gain."""
    matrices = [p for n, p in patient.parameters.items() if p.ndim >= 2 and "." not in n]
    known = any(fitting(patient.root, patient.name, n) for n, p in patient.parameters.items() if p.ndim >= 2)
    if known or not matrices or patient.gain is None or not 1.0 < patient.gain < math.inf:
        return []
    for matrix in matrices:
        matrix.div_(patient.gain)
    return [f"divided by its gain of {patient.gain:.3g}"]


def local(name: str) -> str:
    """Return what a parametrised weight is called on its layer: ``parametrizations.weight.original0`` -> ``weight``."""
    return name.split(".")[1] if name.startswith("parametrizations.") else name


def effective(layer: nn.Module, name: str, parameter: Tensor) -> Tensor:
    """Return the value the layer computes with: the parameter, or what its parametrisation makes of it."""
    value: Tensor = getattr(layer, local(name)) if name.startswith("parametrizations.") else parameter
    return value


def write(layer: nn.Module, name: str, parameter: Tensor, value: Tensor) -> None:
    """Copy ``value`` into the parameter, through the inverses of its parametrisations where there are any."""
    if not name.startswith("parametrizations."):
        parameter.data.copy_(value)
        return
    chain = layer.get_submodule(f"parametrizations.{local(name)}")
    originals: Tensor | Sequence[Tensor] = value.to(parameter.dtype).to(parameter.device)
    step: Any
    for step in reversed(list(chain.children())):
        originals = step.right_inverse(originals)
    many = [originals] if isinstance(originals, Tensor) else list(originals)
    for original, new in zip(chain.parameters(recurse=False), many, strict=True):
        original.data.copy_(new)


def _strays(value: Tensor) -> Tensor:
    """Mark the few elements that are not finite or far above the median magnitude; none if they are not few."""
    sizes = value.abs()
    finite = sizes[sizes.isfinite()]
    typical = float(finite.median()) if finite.numel() else 0.0
    far = ~(sizes <= _STRAY * typical) if typical > 0.0 else ~sizes.isfinite()
    few = bool(far.sum() <= max(1.0, _FEW * value.numel())) and value.numel() >= 16
    return far if few else torch.zeros_like(far)


def norm(tensor: Tensor) -> float:
    """Return the L2 norm in float64, computed on the host."""
    return float(torch.linalg.vector_norm(tensor.detach().cpu().double()))
