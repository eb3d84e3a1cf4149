"""Running statistics of normalisation layers, kept so that a held step leaves no trace in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """Remember running means and variances as they were after the last accepted step.

    A bad batch has been through BatchNorm before its gradient is judged, and one NaN in a running mean stays for ever.
    They are small (two vectors a layer), so they are copied on every accepted step, on their own device.

    Args:
        module: The root module; layers that are added later are not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for layer in module.modules():
            if isinstance(layer, _NormBase) and layer.track_running_stats:
                for buffer in layer.buffers(recurse=False):
                    # A view: a scalar (the count of batches) cannot be concatenated.
                    self._live.setdefault((buffer.device, buffer.dtype), []).append(buffer.view(-1))
        # One tensor a kind: forty copies of a few hundred elements cost ten times as much as one concatenation.
        self._saved = {kind: torch.cat(buffers) for kind, buffers in self._live.items()}

    def accept(self) -> None:
        """Remember the values of now."""
        # Without no_grad, which costs as much as the copy: no buffer asks for a gradient, and this runs at every step.
        for kind, buffers in self._live.items():
            torch.cat(buffers, out=self._saved[kind])

    @torch.no_grad()
    def mend(self) -> None:
        """Put the values back if one of them is no longer finite: unlike weights, they never recover from that."""
        if not all(bool(buffer.isfinite().all()) for buffers in self._live.values() for buffer in buffers):
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the values of the last accepted step."""
        for kind, buffers in self._live.items():
            torch._foreach_copy_(buffers, torch.split(self._saved[kind], [b.numel() for b in buffers]))
