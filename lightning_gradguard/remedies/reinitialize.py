"""Repair the layers at fault: restore them from a snapshot, rescale them, or draw them anew."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_gradguard.initialisation import Initialisation, draw, fitting
from lightning_gradguard.layers import clean, kind_of, layers, parameters_of, select_layers
from lightning_gradguard.records import Blame, Outcome
from lightning_gradguard.remedies.remedy import Remedy, Scene
from lightning_gradguard.snapshots import Snapshot

Method = Literal["auto", "rescale", "restore", "redraw"]

# A layer that moved this much since the snapshot was damaged since; one that did not was bad when the snapshot was taken.
_DAMAGED = 0.5
# |mean| / RMS of a weight that is all but constant; its outputs are all alike, and no scale mends that.
_CONSTANT = 0.995
# A few elements this far above the median carry no knowledge (a flipped bit); the others do.
_STRAY, _FEW = 50.0, 0.01
# Variance that no running average has reached honestly while its layer was in health.
_ABSURD_VARIANCE = 1e8


@dataclass(frozen=True, slots=True)
class _Patient:
    """One blamed layer with what its repair needs."""

    root: nn.Module
    name: str
    layer: nn.Module
    blame: Blame
    snapshot: Snapshot | None
    generator: torch.Generator


class Reinitialize(Remedy):
    """Repair the layers that are blamed, and forget what the optimizer knew of them.

    A layer damaged since the last snapshot is restored from it. Otherwise stray elements (a flipped bit) are set to zero, weights that
    are all but constant are drawn anew with an initialisation that fits type and activation, and weights that are merely too
    large are rescaled to the RMS of that initialisation, which keeps what they have learned. The optimizer's state of each changed
    parameter is removed, step count included: zeroed moments with an old step count would give an update of several times the
    learning rate. Running statistics of the layer and of the normalisation after it are reset too.

    Draws come from a private generator seeded by the layer's name and the step, so all ranks draw alike. Sharded parameters are refused.

    Args:
        method: ``"auto"`` as above, or one way only.
        max_layers: Largest number of layers repaired at once, worst first; None for all that are blamed.
        only: Shell-style patterns of layer names that may be changed; empty for all.
        exclude: Shell-style patterns of layer names that may not.
        seed: Seed of the private generator.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Reinitialize(exclude=["head*"]).name
        'reinitialize'
    """

    name: ClassVar[str] = "reinitialize"

    def __init__(
        self,
        *,
        method: Method = "auto",
        max_layers: int | None = None,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
        if max_layers is not None and not (isinstance(max_layers, int) and max_layers >= 1):
            raise ValueError(f"max_layers must be None or an integer >= 1, got {max_layers!r}")
        for key, patterns in (("only", only), ("exclude", exclude)):
            if isinstance(patterns, str) or not all(isinstance(p, str) and p for p in patterns):
                raise ValueError(f"{key} must be a sequence of non-empty layer patterns, got {patterns!r}")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
        self.method = method
        self.max_layers = max_layers
        self.only, self.exclude = tuple(only), tuple(exclude)
        self.seed = seed

    def check_layers(self, module: nn.Module) -> set[str]:
        """Return the layers that may be changed.

        Raises:
            ValueError: If a pattern matches no layer; the message lists the layers there are.
        """
        allowed = select_layers(module, self.only) if self.only else set(layers(module))
        return allowed - select_layers(module, self.exclude)

    @torch.no_grad()
    def apply(self, scene: Scene) -> Outcome:
        """Repair the blamed layers in place; the gradients of this step are left for the guard to hold."""
        found, allowed = layers(scene.module), self.check_layers(scene.module)
        suspects = [suspect for suspect in scene.blame if suspect.layer in found and suspect.layer in allowed]
        if not suspects:
            return Outcome(self.name, False, "no layer is blamed that may be changed")
        details, repaired = [], []
        for suspect in suspects[: self.max_layers]:
            seed = zlib.crc32(f"{self.seed}/{scene.statistics.step}/{suspect.layer}".encode())
            generator = torch.Generator().manual_seed(seed)
            layer = found[suspect.layer]
            patient = _Patient(scene.module, suspect.layer, layer, suspect, scene.snapshots.latest, generator)
            acted, detail = _repair(patient, self.method)
            details.append(f"{suspect.layer or 'root'}: {detail}")
            if acted:
                repaired.append(suspect.layer)
                _forget(scene.optimizer, layer)
                _refresh_statistics(patient)
        return Outcome(self.name, bool(repaired), "; ".join(details), tuple(repaired))


def _repair(patient: _Patient, method: Method) -> tuple[bool, str]:
    """Change one layer in place; return whether it was changed, and how in words."""
    own = parameters_of(patient.layer)
    if any(hasattr(p, "full_tensor") for p in own.values()):
        return False, "its parameters are sharded, which this remedy does not touch"
    own = {name: p for name, p in own.items() if p.requires_grad or not _finite(p)}
    if not own:
        return False, "its parameters are frozen"
    before = _earlier(patient, own)
    if method == "restore" or (method == "auto" and before and _damaged(own, before)):
        if not before:
            return False, "no snapshot holds finite values of it"
        for name, value in before.items():
            own[name].copy_(value)
        return True, f"restored from the snapshot of step {patient.snapshot.step if patient.snapshot else 0}"
    done = {how: None for name, p in own.items() if (how := _mend(patient, name, p, method))}
    return bool(done), ", ".join(done) or "nothing about its weights could be mended"


def _earlier(patient: _Patient, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the snapshot's values of all parameters in ``own``, or nothing if one is missing or not finite."""
    if patient.snapshot is None:
        return {}
    saved = {clean(name): value for name, value in patient.snapshot.parameters.items()}
    prefix = f"{patient.name}." if patient.name else ""
    values = {name: saved.get(prefix + name) for name in own}
    usable = {n: v for n, v in values.items() if v is not None and v.shape == own[n].shape and _finite(v)}
    return usable if len(usable) == len(own) else {}


def _damaged(own: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Whether the layer left the snapshot's values behind, by its norm; a NaN counts as damage."""
    moved = math.hypot(*(_norm(p.cpu().double() - before[name].cpu().double()) for name, p in own.items()))
    return not moved < _DAMAGED * max(math.hypot(*(_norm(v) for v in before.values())), 1e-12)


def _mend(patient: _Patient, name: str, parameter: Tensor, method: Method) -> str:
    """Mend one parameter without a snapshot; return how, or an empty string where it needs nothing."""
    local = _local(name)
    value = _effective(patient.layer, name, parameter).detach().cpu().double()
    plan = fitting(patient.root, patient.name, local)
    finite = bool(value.isfinite().all())
    if plan is None:
        return _mend_unknown(patient, parameter, finite)
    if plan.scheme == "constant":
        excessive = not finite or (kind_of(patient.layer) == "norm" or method == "redraw") or _peak(value) > 10.0
        return _redraw(patient, name, parameter, plan) if excessive else ""
    stray = _strays(value)
    if method != "redraw" and stray.any() and not stray.all():
        value, finite = value.masked_fill(stray, 0.0), True
        _write(patient.layer, name, parameter, value)
        if _norm(value) / value.numel() ** 0.5 <= 2.0 * plan.std:
            return f"{int(stray.sum())} stray elements set to zero"
    size = _norm(value) / value.numel() ** 0.5
    constant = value.numel() >= 16 and abs(float(value.mean())) > _CONSTANT * size
    # Large gains without large weights come from what the weights have in common, which no rescaling mends.
    if method == "redraw" or not finite or size == 0.0 or (method == "auto" and (constant or size <= plan.std)):
        worth = not finite or method == "redraw" or constant or not _innocent(patient, local, size)
        return _redraw(patient, name, parameter, plan) if worth else ""
    _write(patient.layer, name, parameter, value * (plan.std / size))
    return f"{local} rescaled from RMS {size:.3g} to {plan.std:.3g}"


def _innocent(patient: _Patient, name: str, size: float) -> bool:
    """Whether another, larger matrix of the same layer is there to take the blame."""
    others = [n for n in parameters_of(patient.layer) if n != name and not n.startswith("bias") and "weight" in n]
    return any(
        _norm(parameters_of(patient.layer)[n]) / parameters_of(patient.layer)[n].numel() ** 0.5 > size for n in others
    )


def _mend_unknown(patient: _Patient, parameter: Tensor, finite: bool) -> str:
    """Mend a parameter whose role is not known: zero what is not finite, divide matrices by the measured gain."""
    if not finite:
        parameter.copy_(torch.nan_to_num(parameter, nan=0.0, posinf=0.0, neginf=0.0))
        return "elements that were not finite set to zero"
    gain = patient.blame.forward_gain
    if parameter.ndim < 2 or gain is None or not 1.0 < gain < math.inf:
        return ""
    parameter.div_(gain)
    return f"divided by its gain of {gain:.3g}"


def _redraw(patient: _Patient, name: str, parameter: Tensor, plan: Initialisation) -> str:
    local = _local(name)
    shape = _effective(patient.layer, name, parameter).shape
    gates = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}.get(type(patient.layer), 1)
    values = draw(plan, shape, gates, patient.generator)
    padding = getattr(patient.layer, "padding_idx", None)
    if padding is not None and local == "weight":
        values[padding] = 0.0
    _write(patient.layer, name, parameter, values)
    return (
        f"{local} set to {plan.std:g}"
        if plan.scheme == "constant"
        else f"{local} redrawn ({plan.scheme}, std {plan.std:.3g})"
    )


def _local(name: str) -> str:
    """Return what a parametrised weight is called on its layer: ``parametrizations.weight.original0`` -> ``weight``."""
    return name.split(".")[1] if name.startswith("parametrizations.") else name


def _effective(layer: nn.Module, name: str, parameter: Tensor) -> Tensor:
    return getattr(layer, _local(name)) if name.startswith("parametrizations.") else parameter


def _write(layer: nn.Module, name: str, parameter: Tensor, value: Tensor) -> None:
    """Copy ``value`` into the parameter, through the inverses of its parametrisations where there are any."""
    if not name.startswith("parametrizations."):
        parameter.copy_(value)
        return
    chain = layer.get_submodule(f"parametrizations.{_local(name)}")
    originals: Tensor | Sequence[Tensor] = value.to(parameter.dtype).to(parameter.device)
    for step in reversed(list(chain.children())):
        originals = step.right_inverse(originals)  # type: ignore[operator]
    many = [originals] if isinstance(originals, Tensor) else list(originals)
    for original, new in zip(chain.parameters(recurse=False), many, strict=True):
        original.copy_(new)


def _strays(value: Tensor) -> Tensor:
    """Mark the few elements that are not finite or far above the median magnitude; none if they are not few."""
    sizes = value.abs()
    typical = sizes[sizes.isfinite()].median() if bool(sizes.isfinite().any()) else sizes.new_zeros(())
    far = ~(sizes <= _STRAY * typical) if float(typical) > 0.0 else ~sizes.isfinite()
    few = bool(far.sum() <= max(1.0, _FEW * value.numel())) and value.numel() >= 16
    return far if few else torch.zeros_like(far)


def _forget(optimizer: torch.optim.Optimizer, layer: nn.Module) -> None:
    """Remove the optimizer's whole state of the layer's parameters; the optimizer makes it anew at their next step."""
    for parameter in parameters_of(layer).values():
        optimizer.state.pop(parameter, None)


def _refresh_statistics(patient: _Patient) -> None:
    """Reset the running statistics of the layer, of the normalisation after it, and of those the explosion has spoilt."""
    modules = {clean(name): child for name, child in patient.root.named_modules()}
    names = list(modules)
    place = names.index(patient.name)
    after = next((name for name in names[place + 1 :] if not any(True for _ in modules[name].children())), None)
    for name, norm in modules.items():
        if not isinstance(norm, _NormBase) or norm.running_var is None or norm.running_mean is None:
            continue
        top = max(_peak(norm.running_var), _peak(norm.running_mean) ** 2)
        if name in (patient.name, after) or not top < _ABSURD_VARIANCE:
            norm.reset_running_stats()
            _restore_statistics(patient.snapshot, name, norm)


def _restore_statistics(snapshot: Snapshot | None, name: str, norm: _NormBase) -> None:
    saved = {} if snapshot is None else {clean(key): value for key, value in snapshot.buffers.items()}
    for key, buffer in norm.named_buffers(prefix=name, recurse=False):
        value = saved.get(clean(key))
        if value is not None and value.shape == buffer.shape and _finite(value):
            buffer.copy_(value)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())  # a sync, on a step that is held anyway


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().cpu().double()))


def _peak(tensor: Tensor) -> float:
    return float(tensor.abs().max())
