"""What no optimizer trains: a frozen teacher, an average of the weights in the module, buffers. One copy of it is kept.

Weights that are trained go back with a snapshot. These do not, and one NaN in them stays for ever: whatever is tried on
the weights, the loss is NaN. They are looked at where a step is not finite, and where a snapshot is taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.names import clean
from lightning_gradguard.snapshots.budget import taken
from lightning_gradguard.snapshots.copier import PINNED, host_copy
from lightning_gradguard.statistics.norms import host_norms, local
from lightning_gradguard.statistics.sharding import comparable

AGAIN = 20
"""Steps in which what was put back is not believed to be at fault by itself a second time."""
_version = Tensor._version.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Fallen:
    """A parameter or buffer that is not finite, and was.

    Args:
        name: Its qualified name.
        live: What it is now.
        copy: What it was, in host memory; None where there was no room to keep that.
    """

    name: str
    live: Tensor
    copy: Tensor | None


class Bystanders:
    """Know which of the parameters and buffers that no optimizer trains were finite, and what they were.

    A copy is made once, and again where a tensor has changed since (an average moves with the weights).
    """

    def __init__(self) -> None:
        self._norms: dict[str, tuple[float, int]] = {}  # of what was finite, with how often it had been written to
        self._copies: dict[str, Tensor] = {}
        self._planned: int | None = None
        self._blamed: dict[str, int] = {}
        self.kept = False

    @property
    def empty(self) -> bool:
        """Whether nothing is remembered."""
        return not self._norms

    def unplanned(self, aside: Mapping[str, Tensor]) -> int | None:
        """Return the bytes of the copies, where it was not decided yet whether there is room for so many."""
        wanted = sum(taken(value, PINNED) for value in aside.values())
        return wanted if self._planned is None or wanted > self._planned else None

    def plan(self, wanted: int, *, fits: bool) -> None:
        """Learn whether there is room for copies of so many bytes; without it norms alone are remembered."""
        self._planned, self.kept = wanted, fits
        self._copies = self._copies if fits else {}

    @torch.no_grad()
    def renew(self, aside: Mapping[str, Tensor]) -> list[Fallen]:
        """Remember what is finite now, and return what no longer is."""
        for name in set(self._norms) - set(aside):
            self._norms.pop(name)
            self._copies.pop(name, None)
        fallen, devices = [], set()
        for (name, value), norm in zip(aside.items(), _norms(aside.values()), strict=True):
            if not math.isfinite(norm):
                fallen += self._fallen(name, value)
                continue
            mark = norm, _version(value)
            if self.kept and (self._norms.get(name) != mark or name not in self._copies):
                self._copies[name] = host_copy(value, self._copies.get(name))
                devices |= {value.device} if value.is_cuda else set()
            self._norms[name] = mark
        for device in devices:
            torch.cuda.synchronize(device)
        return fallen

    @torch.no_grad()
    def find(self, aside: Mapping[str, Tensor], held: Mapping[str, tuple[Tensor, Tensor]]) -> list[Fallen]:
        """Return what is not finite now, and was.

        Args:
            aside: What no optimizer trains and no snapshot holds.
            held: Buffers that a snapshot holds, each with what it was there.
        """
        live = {**aside, **{name: value for name, (value, _) in held.items()}}
        bad = [name for name, norm in zip(live, _norms(live.values()), strict=True) if not math.isfinite(norm)]
        fallen = [one for name in bad if name in aside for one in self._fallen(name, aside[name])]
        # A mask may hold -inf in health: what was not finite in the copy either tells nothing.
        return fallen + [
            Fallen(name, *held[name])
            for name in bad
            if name in held and comparable(held[name][1], held[name][0]) and bool(held[name][1].isfinite().all())
        ]

    def _fallen(self, name: str, value: Tensor) -> list[Fallen]:
        copied = self._copies.get(name)
        if copied is not None and not comparable(copied, value):
            return []
        return [Fallen(name, value, copied)] if name in self._norms else []

    def believe(self, names: Collection[str], step: int) -> bool:
        """Return whether they are at fault by themselves, which they are not where the next steps spoil them again."""
        anew = all(step - self._blamed.get(name, step - AGAIN - 1) > AGAIN for name in names)
        if anew:
            self._blamed |= dict.fromkeys(names, step)
        return anew


def put_back(fallen: Iterable[Fallen]) -> list[str]:
    """Write back what was kept of each, of which autograd is not told, and return the names."""
    mended = []
    for one in fallen:
        if one.copy is not None:
            target = one.live.data
            (target.to_local() if hasattr(target, "to_local") else target).copy_(one.copy)
            mended.append(one.name)
    return mended


def aside(module: nn.Module, known: Collection[int]) -> dict[str, Tensor]:
    """Return parameters and buffers that may turn NaN, by name, but for those ``known`` by their ids.

    Running statistics of normalisations are not among them: they are watched at every step.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]
    others = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
    return {
        clean(name): value
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if id(value) not in known and id(value) not in others and _may_break(value)
    }


def _may_break(value: Tensor) -> bool:
    numbers = value.is_floating_point() or value.is_complex()
    return not is_lazy(value) and numbers and not value.is_meta and value.layout is torch.strided


def _norms(values: Iterable[Tensor]) -> list[float]:
    """Return the norm of each, NaN or inf only where an element is; of a sharded one that of this process's part."""
    found = [local(value.detach()) for value in values]
    if not found:
        return []
    norms = host_norms(found).tolist()
    # The square of a large finite number overflows too.
    return [
        norm if math.isfinite(norm) or not bool(value.isfinite().all()) else float(value.abs().amax())
        for norm, value in zip(norms, found, strict=True)
    ]
