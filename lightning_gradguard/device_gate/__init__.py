"""Judging a step on its device, which is not waited for."""

from lightning_gradguard.device_gate.bounds import Bounds
from lightning_gradguard.device_gate.gate import DeviceGate
from lightning_gradguard.device_gate.reading import Flight, Reading

__all__ = ["Bounds", "DeviceGate", "Flight", "Reading"]
