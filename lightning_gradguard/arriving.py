"""Numbers on their way from a device to the host, which goes on meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Arriving:
    """Numbers on their way to the host.

    Args:
        values: The numbers, on whatever device.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self.values = values.float() if values.dtype != torch.float64 else values
        if values.is_cuda:
            there = torch.empty(values.shape, dtype=self.values.dtype, pin_memory=True)
            there.copy_(self.values, non_blocking=True)
            self.values, self._event = there, torch.cuda.Event()  # type: ignore[no-untyped-call]
            # Of their own device, which need not be the current one.
            self._event.record(torch.cuda.current_stream(values.device))
        elif not values.is_cpu:
            self.values = self.values.cpu()

    def read(self) -> npt.NDArray[np.float64]:
        """Return the numbers, which have arrived long ago where the step of the question lies some steps back."""
        if self._event is not None:
            self._event.synchronize()
        numbers: npt.NDArray[np.float64] = self.values.numpy().astype(np.float64)
        return numbers

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: the numbers, arrived."""
        self.read()
        return {"values": self.values, "_event": None}
