"""Whether a step may be left to its device: nothing is amiss, nothing is due, and nobody has to wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradguard.device_gate import DeviceGate
from lightning_gradguard.history.sample import THIN_HISTORY
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.step.copying import worth_copying


def deferrable(track: OptimizerTrack, *, act: bool, awaited: bool) -> tuple[tuple[str, ...], list[Tensor]] | None:
    """Return names and gradients of a step that may be left to its device; None where the host must judge it.

    Args:
        track: Its optimizer.
        act: Whether anything may be changed.
        awaited: Whether layers are being measured.
    """
    if (
        track.incident is not None
        or track.check_up
        or track.watch.tampered
        or awaited
        or track.baseline.count < THIN_HISTORY
        or track.steps < track.watchful
    ):
        return None
    if not _parts_can_wait(track, act=act):
        return None
    rate, last = track.rate(), track.last
    if last is None or rate is None or track.baseline.updates.rate_leapt(rate):
        return None
    # No treatment is on trial where no incident is open.
    if act and worth_copying(track, track.steps, last):
        return None
    names, grads = track.trained.gradients()
    return (names, grads) if names == last.names and DeviceGate.fits(grads) else None


def _parts_can_wait(track: OptimizerTrack, *, act: bool) -> bool:
    # LBFGS makes many updates in one step, with the gradients between them out of sight.
    if isinstance(track.optimizer, torch.optim.LBFGS) or not all(d.deferrable for d in track.detectors):
        return False
    # With no patience the first alarm asks for a slow remedy, which would find the weights of a step later.
    aid = track.remedies.first_aid_on_device and track.policy.patience > 1 and track.remedies.deferrable
    return not act or (aid and any(detector.sees_nonfinite for detector in track.detectors))
