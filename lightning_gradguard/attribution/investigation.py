"""Suspicion: which layers are measured in the next batch, and for whom."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_gradguard.attribution.probe import Probe
from lightning_gradguard.attribution.reading import LayerReading


class Investigation:
    """Know for which optimizers layers are being measured, and turn the readings into suspects."""

    def __init__(self) -> None:
        self._probe = Probe()
        # Optimizers that the probe measures for; each takes the readings at its own next step.
        self._awaiting: set[int] = set()
        # Those whose batch at hand had been through the layers before they were to be measured.
        self._postponed: set[int] = set()
        self._rearm = ""

    @property
    def armed(self) -> str:
        """``"full"`` or ``"forward"`` while layers are measured or will be again, empty otherwise."""
        return self._probe.armed or self._rearm

    @property
    def outside(self) -> bool:
        """Whether the last readings were made outside a compiled graph."""
        return self._probe.outside

    def awaits(self, optimizer: int) -> bool:
        """Return whether the next step of an optimizer brings readings."""
        return optimizer in self._awaiting

    def postpone(self, optimizer: int) -> None:
        """Take an optimizer's readings one step later: what was armed just now has missed the batch at hand."""
        self._postponed.add(optimizer)

    def arm(self, optimizer: int, module: nn.Module, *, backward: bool) -> None:
        """Measure every layer during the next batch, for one optimizer."""
        self._awaiting.add(optimizer)
        self._probe.arm(module, backward=backward)

    def arm_again(self, module: nn.Module) -> None:
        """Arm the probe if it was armed when the state was saved, or at :meth:`rest`."""
        if self._rearm:
            self._probe.arm(module, backward=self._rearm == "full")
            self._rearm = ""

    def disarm(self) -> None:
        """Take the hooks off."""
        self._probe.disarm()

    def rest(self) -> None:
        """Take the hooks off until :meth:`arm_again`."""
        self._rearm = self.armed
        self._probe.disarm()

    def forget(self) -> None:
        """Forget what was asked for of another module."""
        self._rearm, self._awaiting = "", set()

    def readings(self, optimizer: int) -> tuple[LayerReading, ...]:
        """Return what the probe measured for an optimizer since its last step."""
        if optimizer not in self._awaiting:
            return ()
        if optimizer in self._postponed:
            self._postponed.discard(optimizer)
            return ()
        readings = self._probe.readings() if self._probe.armed else ()
        self._awaiting.discard(optimizer)
        if not self._awaiting:
            self._probe.disarm()
        return readings

    def state_dict(self) -> dict[str, Any]:
        """Return what is being measured, and for whom."""
        return {"armed": self.armed, "awaiting": sorted(self._awaiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; :meth:`arm_again` puts it into effect."""
        self._rearm = str(state["armed"])
        self._awaiting = {int(index) for index in state["awaiting"]}
        self._probe.disarm()
