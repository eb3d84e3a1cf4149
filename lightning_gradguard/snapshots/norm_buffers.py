"""Running statistics of normalisation layers. One idea: a skipped step leaves no trace in what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from lightning_gradguard.layers.names import clean
from lightning_gradguard.snapshots.leaps import Leaps, View, grown, power

LEAP_OF_VARIANCE = 1e8
"""With the usual momentum of a tenth: a batch 30,000 times larger than any; 8-bit data, unscaled, leap by 7e3."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """All buffers of a device, one after the other.

    As bytes, since one concatenation of all kinds costs less than one a kind, and sixty copies ten times as much.

    Args:
        bytes: Everything.
        floats: The same memory, as far as it holds numbers that may be infinite; one tensor a dtype.
    """

    bytes: Tensor
    floats: list[Tensor]

    @classmethod
    def of(cls, views: list[Tensor]) -> _Copy:
        """Copy ``views``, of one dimension each and sorted by :func:`_kind`."""
        copied = torch.cat([view.view(torch.uint8) for view in views])
        sizes = {dtype: sum(v.nbytes for v in group) for dtype, group in groupby(views, lambda v: v.dtype)}
        parts = zip(sizes, torch.split(copied, list(sizes.values())), strict=True)
        return cls(copied, [part.view(dtype) for dtype, part in parts if dtype.is_floating_point])


def _kind(view: View) -> tuple[int, str]:
    return view[0].element_size(), str(view[0].dtype)


class RunningStatistics:
    """Remember running means and variances as they were after the last accepted step.

    A bad batch has been through BatchNorm before its gradient is judged, and one NaN in a running mean stays for ever.
    They are small (two vectors a layer), so they are copied on every accepted step, on their own device.

    Args:
        module: The root module; layers that are added later are not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._lazy: list[_NormBase] = []
        self.leaps = Leaps(module)
        # Names of the layers whose statistics were put back last.
        self.spoilt: list[str] = []
        self._look()

    def _look(self) -> None:
        found: dict[torch.device, list[View]] = {}
        for layer in self._module.modules():
            if isinstance(layer, _NormBase) and layer.track_running_stats:
                if any(is_lazy(buffer) for buffer in layer.buffers(recurse=False)):
                    self._lazy.append(layer)
                    continue
                self.leaps.mark(layer)
                for key, buffer in layer.named_buffers(recurse=False):
                    # A view: a scalar (the count of batches) cannot be concatenated. Of .data, since entering no_grad
                    # costs, and since a graph that lives on (one forward pass, two backward passes) must not find its
                    # version changed; batch normalisation itself writes to its statistics without a trace there.
                    found.setdefault(buffer.device, []).append((buffer.data.view(-1), layer, key))
        # The largest elements first, so that in a copy each kind begins at a multiple of its size.
        self._views = {device: sorted(views, key=_kind, reverse=True) for device, views in found.items()}
        kinds = {device: [view for view, *_ in views] for device, views in self._views.items()}
        self._live = {device: [view.view(torch.uint8) for view in views] for device, views in kinds.items()}
        self._saved = {device: _Copy.of(views) for device, views in kinds.items()}
        self._spare = {device: _Copy.of(views) for device, views in kinds.items()}
        # Sums of squares of what is remembered on the host; what it was elsewhere when it was last looked at.
        self._powers: dict[torch.device, list[float]] = {}
        self._looked: dict[torch.device, Tensor] = {}

    def _awaken(self, *, reset: bool = False) -> None:
        """Look again once lazy layers have got their buffers from the first batch; that may have been a bad one."""
        if not self._lazy or any(is_lazy(buffer) for layer in self._lazy for buffer in layer.buffers(recurse=False)):
            return
        for layer in self._lazy if reset else ():
            reset_statistics(layer)
        self._lazy = []
        self._look()

    def accept(self, corrupt: Callable[[], bool] = lambda: False, passed: Tensor | None = None) -> bool:
        """Remember the values of now; put the old ones back if one is not finite or huge, or the step did not pass.

        A normalisation hides a huge input from the gradient: it divides by its variance, and all looks calm. In the
        running variance an inf would stay for ever, and 1e28 for six hundred steps, through which evaluation sees
        nothing else.

        Args:
            corrupt: Tells whether the batch of this step is far larger than any healthy one; asked only if the largest
                of all running statistics has leapt as no shift of the data makes it leap. Where a layer changed its
                scale, statistics must follow.
            passed: Whether the step's update is made, where only the device knows; a bool tensor of no dimension.

        Returns:
            Whether they were put back; always False where only the device knows, of which a leap is not asked.
        """
        if self._lazy:
            self._awaken()
        if not self._live:
            return False
        if self.leaps.waiting:
            self._put_back(self.leaps.settle())
        fresh = self._spare
        self._read(fresh)
        for device, copy in fresh.items():
            if device.type == "cpu" and passed is None:
                powers = [*map(power, copy.floats)]
                if any(map(partial(_spoilt, corrupt), powers, copy.floats, self._saved[device].floats)):
                    self.spoilt = self._worst(device)
                    self.restore()
                    return True
                if any(map(grown, powers, self._powers.get(device, ()))):
                    self.leaps.compare(self._views[device], self._saved[device].bytes, copy.bytes)
                self._powers[device] = powers
                continue
            # Copying back without need is cheaper than waiting for the device to say that there is none.
            good = torch.ones((), dtype=torch.bool, device=device) if passed is None else passed
            good = good.to(device, non_blocking=True)
            for values in copy.floats:
                good = good & values.isfinite().all()
            torch.where(good, copy.bytes, self._saved[device].bytes, out=copy.bytes)
            self._write(device, copy.bytes)
        self._saved, self._spare = fresh, self._saved
        return False

    def _worst(self, device: torch.device) -> list[str]:
        """Return the names of the layers whose statistics are not finite, or else of the one that has the largest."""
        peaks = {id(layer): 0.0 for _, layer, _ in self._views[device]}
        for view, layer, _ in self._views[device]:
            if view.is_floating_point():
                peak = float(view.abs().amax())
                peaks[id(layer)] = max(peaks[id(layer)], math.inf if math.isnan(peak) else peak)
        worst = max(peaks.values())
        return [clean(name) for name, layer in self._module.named_modules() if peaks.get(id(layer)) == worst]

    def look(self) -> bool:
        """Look for leaps on devices that are not asked at every step; return whether there is one to wait for."""
        for device in self._live:
            if device.type != "cpu":
                now = torch.cat(self._live[device]).cpu()
                if device in self._looked:
                    self.leaps.compare(self._views[device], self._looked[device], now)
                self._looked[device] = now
        return bool(self.leaps.waiting)

    def end(self) -> None:
        """Put back what somebody has written in the last step, of which no batch can tell any more."""
        self._put_back(self.leaps.settle(last=True))

    def _put_back(self, layers: list[tuple[_NormBase, dict[str, Tensor]]]) -> None:
        """Write statistics from before a leap, here and into what is remembered."""
        back = {(id(layer), key): value for layer, held in layers for key, value in held.items() if "running" in key}
        for device, views in self._views.items() if back else ():
            saved = torch.split(self._saved[device].bytes, [live.numel() for live in self._live[device]])
            for (view, layer, key), copied in zip(views, saved, strict=True):
                if (value := back.get((id(layer), key))) is not None:
                    view.copy_(value)
                    copied.view(view.dtype).copy_(value)
            self._powers.pop(device, None)
            self._looked.pop(device, None)

    def remember(self) -> None:
        """Remember the values of now and change none, whatever they are."""
        self._awaken()
        self._read(self._spare)
        self._saved, self._spare = self._spare, self._saved

    @torch.no_grad()
    def repair(self) -> None:
        """Put the values back if one of them is no longer finite: unlike weights, they never recover from that."""
        self._awaken(reset=True)
        self._read(self._spare)
        if not all(bool(values.isfinite().all()) for copy in self._spare.values() for values in copy.floats):
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the values of the last accepted step."""
        self._awaken(reset=True)
        self.leaps.unsee()
        for device, saved in self._saved.items():
            self._write(device, saved.bytes)

    @contextmanager
    def as_remembered(self) -> Iterator[None]:
        """Show the values of the last accepted step for a while, and put those of now back."""
        if self._lazy:  # Nothing is remembered of layers that have seen one batch only.
            yield
            return
        now = {device: torch.cat(live) for device, live in self._live.items()}
        for device, saved in self._saved.items():
            self._write(device, saved.bytes)
        try:
            yield
        finally:
            for device, bytes_ in now.items():
                self._write(device, bytes_)

    def _read(self, copies: dict[torch.device, _Copy]) -> None:
        for device, live in self._live.items():
            torch.cat(live, out=copies[device].bytes)

    def _write(self, device: torch.device, values: Tensor) -> None:
        live = self._live[device]
        torch._foreach_copy_(live, torch.split(values, [view.numel() for view in live]))


def reset_statistics(layer: _NormBase) -> None:
    """Make the running statistics of a layer those of its construction, of which a graph that lives on is not told."""
    for key, first in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
        if (buffer := layer._buffers.get(key)) is not None:
            buffer.data.fill_(first)


def _spoilt(corrupt: Callable[[], bool], squares: float, values: Tensor, saved: Tensor) -> bool:
    """Return whether an element is not finite, or the largest has leapt from what was saved with a corrupt batch."""
    if squares < 0.5 * LEAP_OF_VARIANCE**2:
        return False  # All elements are far below what could be a leap.
    # The largest is a variance, or NaN if anything is. A mean of -inf comes with a variance that is not finite.
    peak = values.amax().item()
    leapt = peak > LEAP_OF_VARIANCE and peak > LEAP_OF_VARIANCE * saved.amax().item()
    return not math.isfinite(peak) or (leapt and corrupt())
