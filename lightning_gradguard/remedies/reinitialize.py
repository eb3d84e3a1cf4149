"""Repair the layers at fault. One idea: each is restored from a snapshot, rescaled, or else drawn anew."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_gradguard.layers.names import clean, layers, parameters_of, select_layers
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome, Suspect
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.snapshots.norm_buffers import reset_statistics
from lightning_gradguard.snapshots.snapshot import Snapshot, restore_optimizer_state
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.statistics.sharding import comparable, gathered, sharded, whole, write

if TYPE_CHECKING:
    from lightning_gradguard.remedies.repair import Patient

Method = Literal["auto", "rescale", "restore", "redraw"]

# A layer that moved this much since the snapshot was damaged since; one that did not was bad when the snapshot was
# taken.
_DAMAGED = 0.5
# Times its norm in the snapshot before that a layer does not grow by in health.
_OVERGROWN = 3.0
# Variance that no running average reaches while its layer is in health.
_ABSURD_VARIANCE = 1e8


class Reinitialize(Remedy):
    """Repair the layers that are blamed, and put right what the optimizer knows of them.

    A layer damaged since the last snapshot is restored from it, and the optimizer's state of it as well. Otherwise
    stray elements (a flipped bit) are set to zero, weights whose mean outweighs their deviations are drawn anew with an
    initialisation that fits type and activation, and weights that are merely too large are rescaled to the RMS of that
    initialisation, which keeps what they have learned; the optimizer's state of each such parameter is removed, step
    count included: zeroed moments with an old step count would give an update of several times the learning rate.
    Running statistics of the layer and of the normalisation after it are reset too.

    Draws come from a private generator seeded by the layer's name and the step, so all ranks draw alike. Sharded
    parameters are repaired whole, by all ranks alike; parametrised ones among them are refused.

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
    acts: ClassVar[frozenset[str]] = frozenset({Act.REINITIALIZE})
    deferrable: ClassVar[bool] = True
    uses_snapshots: ClassVar[bool] = True

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

    def check(self, module: nn.Module) -> None:
        """Raise ValueError, listing the layers there are, if a pattern matches none."""
        self.check_layers(module)

    def check_layers(self, module: nn.Module) -> set[str]:
        """Return the layers that may be changed.

        Raises:
            ValueError: If a pattern matches no layer; the message lists the layers there are.
        """
        allowed = select_layers(module, self.only) if self.only else set(layers(module))
        return allowed - select_layers(module, self.exclude)

    @torch.no_grad()
    def apply(self, context: RemedyContext) -> Outcome:
        """Repair the blamed layers in place; the step itself is left for the guard to skip."""
        found, allowed = layers(context.module), self.check_layers(context.module)
        suspects = [suspect for suspect in context.blame if suspect.layer in found and suspect.layer in allowed]
        if not suspects:
            return Outcome(self.name, False, "no layer is blamed that may be changed")
        details, repaired = [], []
        for suspect in suspects[: self.max_layers]:
            patient = self._admit(context, found[suspect.layer], suspect)
            snapshot = self._source(patient, context.snapshots)
            acted, detail = _repair(
                patient, snapshot, self.method if context.start or self.method != "auto" else "restore"
            )
            details.append(f"{suspect.layer or 'root'}: {detail}")
            if acted:
                repaired.append(suspect.layer)
                _discharge(patient)
                _reset_state(context.optimizer, patient, snapshot)
                _refresh_statistics(patient, snapshot)
        return Outcome(self.name, bool(repaired), "; ".join(details), tuple(repaired))

    def _admit(self, context: RemedyContext, layer: nn.Module, suspect: Suspect) -> Patient:
        from lightning_gradguard.remedies.repair import Patient  # only now: most runs never repair a layer

        live = {name: p for name, p in parameters_of(layer).items() if p.requires_grad or not _finite(whole(p))}
        # All ranks repair a copy of the whole alike, and each takes its part of it.
        own = {name: whole(p).clone() if sharded(p) else p for name, p in live.items()}
        seed = zlib.crc32(f"{self.seed}/{context.statistics.step}/{suspect.layer}".encode())
        generator = torch.Generator().manual_seed(seed)
        return Patient(context.module, suspect.layer, layer, own, live, suspect.forward_gain, generator)

    def _source(self, patient: Patient, snapshots: SnapshotStore) -> Snapshot | None:
        """Return the snapshot to restore from, or None where a repair is the better way."""
        latest, older = snapshots.latest, snapshots.older
        before = _earlier(patient, latest)
        wanted = self.method == "restore" or (self.method == "auto" and _damaged(patient.parameters, before))
        if not before or not wanted:
            return None
        # Damage that comes step by step may have begun before the newest was taken.
        return older if _grown(before, _earlier(patient, older)) else latest


def _repair(patient: Patient, snapshot: Snapshot | None, method: Method) -> tuple[bool, str]:
    """Change one layer in place; return whether it was changed, and how in words."""
    from lightning_gradguard.remedies.repair import repair

    own = patient.parameters
    if not own:
        return False, "its parameters are frozen"
    if any(sharded(p) and name.startswith("parametrizations.") for name, p in patient.live.items()):
        return False, "its weights are parametrised and sharded, which this remedy does not touch"
    if snapshot is not None:
        for name, value in _earlier(patient, snapshot).items():
            own[name].data.copy_(value)
        return True, f"restored from the snapshot of step {snapshot.number}"
    if method == "restore":
        done = repair(patient, redraw=False, keep=True, rescale=False)
        return bool(done), ", ".join(
            done
        ) or "no snapshot holds what it was, and nothing is drawn anew in a run under way"
    done = repair(patient, redraw=method != "rescale", keep=method != "redraw")
    return bool(done), ", ".join(done) or "nothing about its weights could be repaired"


def _earlier(patient: Patient, snapshot: Snapshot | None) -> dict[str, Tensor]:
    """Return the snapshot's values of all the layer's parameters, or nothing if one is missing or not finite."""
    live = patient.live
    saved = {} if snapshot is None else {clean(name): value for name, value in snapshot.parameters.items()}
    prefix = f"{patient.name}." if patient.name else ""
    parts = {name: saved.get(prefix + name) for name in live}
    values = {n: gathered(v, live[n]) for n, v in parts.items() if v is not None and comparable(v, live[n])}
    return values if len(values) == len(live) and all(map(_finite, values.values())) else {}


def _damaged(own: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Whether the layer left the snapshot's values behind, by its norm; a NaN counts as damage."""
    from lightning_gradguard.remedies.repair import norm

    if not before:
        return False
    moved = math.hypot(*(norm(p.cpu().double() - before[name].cpu().double()) for name, p in own.items()))
    return not moved < _DAMAGED * max(math.hypot(*(norm(v) for v in before.values())), 1e-12)


def _grown(now: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Whether the layer grew from one snapshot to the next as no training makes it grow."""
    from lightning_gradguard.remedies.repair import norm

    return (
        bool(before)
        and math.hypot(*map(norm, now.values())) > _OVERGROWN * math.hypot(*map(norm, before.values())) > 0.0
    )


def _discharge(patient: Patient) -> None:
    """Write what was repaired in a copy back to where it came from."""
    for name, parameter in patient.live.items():
        if parameter is not patient.parameters[name]:
            write(parameter, patient.parameters[name])


def _reset_state(optimizer: torch.optim.Optimizer, patient: Patient, snapshot: Snapshot | None) -> None:
    """Put the optimizer's state of restored parameters back too; that of others is made anew at their next step."""
    prefix = f"{patient.name}." if patient.name else ""
    saved = {} if snapshot is None else {clean(name): state for name, state in snapshot.optimizer_state.items()}
    for name, parameter in patient.live.items():
        restore_optimizer_state(optimizer, parameter, saved.get(prefix + name))


def _refresh_statistics(patient: Patient, snapshot: Snapshot | None) -> None:
    """Reset running statistics of the layer, of the normalisation after it, and what the explosion has spoilt."""
    modules = {clean(name): child for name, child in patient.root.named_modules()}
    names = list(modules)
    place = names.index(patient.name)
    after = next((name for name in names[place + 1 :] if not any(True for _ in modules[name].children())), None)
    for name, child in modules.items():
        if not isinstance(child, _NormBase) or child.running_var is None or child.running_mean is None:
            continue
        top = max(_peak(child.running_var), _peak(child.running_mean) ** 2)
        if name in (patient.name, after) or not top < _ABSURD_VARIANCE:
            reset_statistics(child)
            _restore_statistics(snapshot, name, child)


def _restore_statistics(snapshot: Snapshot | None, name: str, module: _NormBase) -> None:
    saved = {} if snapshot is None else {clean(key): value for key, value in snapshot.buffers.items()}
    for key, buffer in module.named_buffers(prefix=name, recurse=False):
        value = saved.get(clean(key))
        if value is not None and value.shape == buffer.shape and _finite(value):
            buffer.data.copy_(value)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())  # a sync, on a step that is skipped anyway


def _peak(tensor: Tensor) -> float:
    return float(tensor.abs().max())
