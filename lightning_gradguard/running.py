"""Running statistics of normalisation layers, kept so that a held step leaves no trace in them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

LEAP = 1e8
"""With the usual momentum of a tenth: a batch thirty thousand times larger than any; 8-bit data, no longer scaled, leap by 7e3."""


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
        self._look()

    def _look(self) -> None:
        self._live: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for layer in self._module.modules():
            if isinstance(layer, _NormBase) and layer.track_running_stats:
                if any(is_lazy(buffer) for buffer in layer.buffers(recurse=False)):
                    self._lazy.append(layer)
                    continue
                for buffer in layer.buffers(recurse=False):
                    # A view: a scalar (the count of batches) cannot be concatenated. Detached: entering no_grad costs.
                    self._live.setdefault((buffer.device, buffer.dtype), []).append(buffer.detach().view(-1))
        # One tensor a kind: forty copies of a few hundred elements cost ten times as much as one concatenation.
        self._saved = {kind: torch.cat(buffers) for kind, buffers in self._live.items()}
        self._spare = {kind: torch.empty_like(saved) for kind, saved in self._saved.items()}
        floating = [kind for kind in self._live if kind[1].is_floating_point]
        self._seen = [kind for kind in floating if kind[0].type == "cpu"]
        self._unseen = [kind for kind in floating if kind[0].type != "cpu"]

    def _awaken(self, *, reset: bool = False) -> None:
        """Look again once lazy layers have been given their buffers by the first batch; that may have been a bad one."""
        if not self._lazy or any(is_lazy(buffer) for layer in self._lazy for buffer in layer.buffers(recurse=False)):
            return
        for layer in self._lazy if reset else ():
            layer.reset_running_stats()
        self._lazy = []
        self._look()

    def accept(self, corrupt: Callable[[], bool] = lambda: False, passed: Tensor | None = None) -> bool:
        """Remember the values of now; put the old ones back if one is not finite or is huge, or if the step did not pass.

        A normalisation hides a huge input from the gradient: it divides by its variance, and all looks calm. In the
        running variance an inf would stay for ever, and 1e28 for six hundred steps, through which evaluation sees nothing else.

        Args:
            corrupt: Tells whether the batch of this step is far larger than any healthy one; asked only if the largest of all
                running statistics has leapt as no shift of the data makes it leap. Where a layer changed its scale, statistics
                must follow.
            passed: Whether the step's update is made, where only the device knows; a bool tensor of no dimension.

        Returns:
            Whether they were put back; always False where only the device knows, of which a leap is not asked.
        """
        if self._lazy:
            self._awaken()
        fresh = self._spare
        for kind, buffers in self._live.items():
            torch.cat(buffers, out=fresh[kind])
        for kind in self._seen if passed is None else ():
            # The largest is a variance, or NaN if anything is. A mean of -inf comes with a variance that is not finite.
            peak = fresh[kind].amax().item()
            leapt = peak > LEAP and peak > LEAP * self._saved[kind].amax().item()
            if not math.isfinite(peak) or (leapt and corrupt()):
                self.restore()
                return True
        for kind in self._unseen if passed is None else fresh:
            # Copying back without need is cheaper than waiting for the device to say that there is none.
            values = fresh[kind]
            good = values.isfinite().all()
            if passed is not None:
                good = good & passed.to(good.device, non_blocking=True)
            torch.where(good, values, self._saved[kind], out=values)
            self._write(kind, values)
        self._saved, self._spare = fresh, self._saved
        return False

    @torch.no_grad()
    def mend(self) -> None:
        """Put the values back if one of them is no longer finite: unlike weights, they never recover from that."""
        self._awaken(reset=True)
        if not all(bool(buffer.isfinite().all()) for buffers in self._live.values() for buffer in buffers):
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the values of the last accepted step."""
        self._awaken(reset=True)
        for kind, saved in self._saved.items():
            self._write(kind, saved)

    def _write(self, kind: tuple[torch.device, torch.dtype], values: Tensor) -> None:
        buffers = self._live[kind]
        torch._foreach_copy_(buffers, torch.split(values, [b.numel() for b in buffers]))
