"""Check a saved state by loading it into copies, before anything is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_gradguard.checkpoint.migration import VERSION, empty
from lightning_gradguard.checkpoint.shape import check_incident, check_snapshot, like
from lightning_gradguard.errors import GuardError
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.parts import Parts
from lightning_gradguard.policy import Trial
from lightning_gradguard.track_state import load_state, state_of


def rehearse(state: Any, module: nn.Module | None, parts: Parts) -> None:
    """Check the state of a guard by its version, by type, by the module's shapes, and by loading it into copies.

    A detector or remedy that cannot load its own state is no reason to refuse if it will be left out
    (``parts.isolate``).

    Raises:
        GuardError: The state does not fit; the message says where. A part whose ``load_state_dict`` fails is named.
    """
    try:
        like(empty(), state, "state")
        if state["version"] != VERSION:
            raise ValueError(f"it is of version {state['version']}, and this package reads version {VERSION}")
        for number, incident in enumerate(state["incidents"]):
            check_incident(incident, f"incidents[{number}]")
        for index, saved in state["lanes"].items():
            _load(scratch(parts, int(index)), saved, module, parts, f"lanes.{index}")
    except GuardError:
        raise
    except Exception as error:
        raise GuardError(f"the guard's saved state cannot be used: {error}") from error


def scratch(parts: Parts, index: int = 0) -> OptimizerTrack:
    """Return the track of an empty module, into which a state is loaded to check it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    # Nobody is told of what fails here: it may be left out later, or not be asked at all.
    isolate = None if parts.isolate is None else lambda error: None
    return OptimizerTrack(index, nn.Module(), optimizer, replace(parts, isolate=isolate))


def _load(track: OptimizerTrack, saved: Any, module: nn.Module | None, parts: Parts, where: str) -> None:
    model = state_of(scratch(replace(parts, detectors=(), remedies=())))
    # A fresh track has none of these, and they hold no plain numbers.
    model["batches"]["peaks"], model["trial"] = [[0.0]], [Trial("", (), 0).state_dict()]
    like(model, saved, where)
    accumulator = saved["meter"]
    if not len(accumulator["names"]) == len(accumulator["peaks"]) == len(accumulator["nonfinite"]):
        raise ValueError(f"{where}.meter has lists of different lengths")
    if saved["incident"] is not None:
        check_incident(saved["incident"], f"{where}.incident")
    copies = {f"{where}.snapshots.kept[{number}]": found for number, found in enumerate(saved["snapshots"]["kept"])}
    copies |= {f"{where}.treating.untreated": found for found in saved["treating"]["untreated"]}
    for place, snapshot in copies.items():
        check_snapshot(snapshot, module, place)
        like(model["memory"], snapshot["extra"], f"{place}.extra")
        track.load_memory(snapshot["extra"])
    load_state(track, saved)
