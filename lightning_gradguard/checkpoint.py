"""Try a saved state on copies: what does not fit is forgotten, or refused, before anything is touched."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics.decode import decode
from lightning_gradguard.errors import GuardError
from lightning_gradguard.layers.names import clean
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Policy, Trial
from lightning_gradguard.records import Incident, incident_from_json
from lightning_gradguard.remedies import Remedy
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.track_state import load_state, state_of

VERSION = 4
"""Of the state. It moves with every change of the state's keys; what was saved under an earlier one is migrated step by step."""
# What a fresh track cannot be the model for: parts that may have changed since, and what is empty at first.
_OF_ITS_OWN = ("detectors", "remedies", "incidents", "incident", "kept", "trial", "peaks", "untreated", "looking")


def migrate(state: Any) -> Any:
    """Return a state of an earlier version as one of this version; another state as it is."""
    while isinstance(state, dict) and type(version := state.get("version")) is int and version in _MIGRATIONS:
        state = _MIGRATIONS[version](state)
    return state


def _from_1(state: dict[str, Any]) -> dict[str, Any]:
    """Keep the incidents, and drop what rules had learned that are gone."""
    warnings.warn(
        "GradGuard: the saved state is of an older version: its incidents are kept, and what is usual in this run is learned anew",
        RuntimeWarning,
        stacklevel=4,
    )
    incidents = state.get("incidents")
    kept = list(map(_migrated, incidents)) if isinstance(incidents, list) else incidents
    return {**state, "version": 2, "lanes": {}, "incidents": kept, "armed": "", "awaiting": []}


def _next(state: dict[str, Any]) -> dict[str, Any]:
    """Change nothing but the number: what is new since then is completed, and what has another name is learned anew."""
    return {**state, "version": state["version"] + 1}


_MIGRATIONS = {1: _from_1, 2: _next, 3: _next}


def _migrated(incident: Any) -> Any:
    """Return an incident without what decisions no longer have; one that was open is over, since nobody is left to close it."""
    try:
        gone = ("factor", "permanent")
        actions = [
            {**action, "decision": {key: value for key, value in action["decision"].items() if key not in gone}}
            for action in incident["actions"]
        ]
        last = [incident["step"], *(action["step"] for action in actions)][-1]
        return {**incident, "actions": actions, "closed": last if incident["closed"] is None else incident["closed"]}
    except (AttributeError, KeyError, TypeError):
        return incident  # What is wrong with it, the check will tell.


def usable(
    state: Any,
    module: nn.Module | None,
    *,
    detectors: Sequence[Detector],
    remedies: Sequence[Remedy],
    policy: Policy,
    snapshots: SnapshotStore,
    isolate: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Return what can be used of a state, completed by what is new since it was saved, and the names of what cannot.

    Without what was learned of healthy steps all else of an optimizer is of no use: a run that is known to be old, and of which
    nothing is known besides, would be taken for one that has learned nothing yet. An open incident is of one piece with the treatment
    on trial.

    Raises:
        PartError: A detector or remedy cannot save or load a state, and is not to be left out for it (``isolate``).
    """
    parts: dict[str, Any] = {"detectors": detectors, "remedies": remedies, "policy": policy, "snapshots": snapshots}
    found: dict[str, Any] = {"version": VERSION, "lanes": {}, "incidents": [], "armed": "", "awaiting": []}
    if not isinstance(state, dict) or state.get("version") != VERSION:
        return found, ["all of it"]

    fresh = state_of(_scratch(0, isolate=(lambda error: None) if isolate else None, **parts))
    # A part that cannot load what it has just saved is at fault itself, and is not the state's business.
    rehearse({**found, "lanes": {"0": fresh}}, None, isolate=isolate, **parts)

    def fits(**more: Any) -> bool:
        try:
            rehearse({**found, **more}, module, isolate=isolate, **parts)
        except GuardError:
            return False
        return True

    forgotten: list[str] = []
    for key in ("armed", "awaiting"):
        if key in state and fits(**{key: state[key]}):
            found[key] = state[key]
    for number, incident in enumerate(_items(state.get("incidents"), forgotten, "incidents")):
        if fits(incidents=[incident]):
            found["incidents"].append(incident)
        else:
            forgotten.append(f"incidents[{number}]")
    lanes = state.get("lanes")
    if not isinstance(lanes, dict):
        forgotten.append("lanes")
        return found, forgotten
    for index, saved in lanes.items():
        lane = _completed(fresh, saved)
        known = set(fresh["memory"]["baseline"])
        if fits(lanes={index: lane}) and set(lane["memory"]["baseline"]) <= known:
            found["lanes"][index] = lane
            continue
        if not isinstance(lane, dict) or not fits(lanes={index: {**fresh, "memory": lane.get("memory")}}):
            forgotten.append(f"all of optimizer {index}")
            continue
        if not set(lane["memory"]["baseline"]) <= known:
            forgotten.append(f"all of optimizer {index}")
            continue
        kept = {**fresh, "memory": lane["memory"]}
        for group in (_INCIDENT, *((key,) for key in fresh if key not in _INCIDENT)):
            candidate = {**kept, **{key: lane[key] for key in group}}
            if fits(lanes={index: candidate}):
                kept = candidate
            else:
                forgotten += [f"{key} of optimizer {index}" for key in group]
        found["lanes"][index] = kept
    still = [lane["incident"] for lane in found["lanes"].values() if lane["incident"] is not None]
    open_now = {(one["optimizer"], one["number"]) for one in still}
    # Nobody is left to close the others.
    found["incidents"] = [
        one if (one["optimizer"], one["number"]) in open_now else _migrated(one) for one in found["incidents"]
    ]
    return found, forgotten


_INCIDENT = ("incident", "trial", "treating", "trouble", "policy")


def _items(value: Any, forgotten: list[str], where: str) -> list[Any]:
    if isinstance(value, list):
        return value
    forgotten.append(where)
    return []


def _completed(model: Any, saved: Any) -> Any:
    """Return what was saved with the defaults of what is new, in snapshots too."""
    if not isinstance(model, dict) or not isinstance(saved, dict):
        return saved
    whole = {key: _completed(value, saved[key]) if key in saved else value for key, value in model.items()}
    whole = {**saved, **whole}
    for room, key in (("snapshots", "kept"), ("treating", "untreated")):
        if "memory" in model and isinstance(whole.get(room), dict) and isinstance(whole[room].get(key), list):
            copies = [
                {**one, "extra": _completed(model["memory"], one["extra"])}
                if isinstance(one, dict) and isinstance(one.get("extra"), dict)
                else one
                for one in whole[room][key]
            ]
            whole[room] = {**whole[room], key: copies}
    return whole


def _scratch(index: int, *, isolate: Any, **parts: Any) -> OptimizerTrack:
    """Return a track of nothing, to try a state on."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    return OptimizerTrack(index, nn.Module(), optimizer, isolate=isolate, **parts)


def rehearse(
    state: Any,
    module: nn.Module | None,
    *,
    detectors: Sequence[Detector],
    remedies: Sequence[Remedy],
    policy: Policy,
    snapshots: SnapshotStore,
    isolate: bool,
) -> None:
    """Check the state of a guard by its version, by type, by the module's shapes, and by loading it into copies.

    A detector or remedy that cannot load its own state is no reason to refuse if it will be left out (``isolate``).

    Raises:
        GuardError: The state does not fit; the message says where. A part whose ``load_state_dict`` fails is named.
    """
    try:
        _like({"version": 0, "lanes": {}, "incidents": [], "armed": "", "awaiting": []}, state, "state")
        if state["version"] != VERSION:
            raise ValueError(f"it is of version {state['version']}, and this package reads version {VERSION}")
        for number, incident in enumerate(state["incidents"]):
            _incident(incident, f"incidents[{number}]")
        for index, saved in state["lanes"].items():
            track = _scratch(
                int(index),
                detectors=detectors,
                remedies=remedies,
                policy=policy,
                snapshots=snapshots,
                isolate=(lambda error: None) if isolate else None,
            )
            _track(track, saved, module, f"lanes.{index}")
    except GuardError:
        raise
    except Exception as error:
        raise GuardError(f"the guard's saved state cannot be used: {error}") from error


def _track(track: OptimizerTrack, saved: Any, module: nn.Module | None, where: str) -> None:
    model = state_of(
        OptimizerTrack(
            0,
            track.module,
            track.optimizer,
            detectors=(),
            remedies=(),
            policy=track.policy,
            snapshots=track.snapshots,
        )
    )
    # Of these a fresh track has none, and what they hold are no plain numbers.
    model["batches"]["peaks"], model["trial"] = [[0.0]], [Trial("", (), 0).state_dict()]
    _like(model, saved, where)
    accumulator = saved["meter"]
    if not len(accumulator["names"]) == len(accumulator["peaks"]) == len(accumulator["nonfinite"]):
        raise ValueError(f"{where}.meter has lists of different lengths")
    if saved["incident"] is not None:
        _incident(saved["incident"], f"{where}.incident")
    copies = {f"{where}.snapshots.kept[{number}]": found for number, found in enumerate(saved["snapshots"]["kept"])}
    copies |= {f"{where}.treating.untreated": found for found in saved["treating"]["untreated"]}
    for place, snapshot in copies.items():
        _snapshot(snapshot, module, place)
        _like(model["memory"], snapshot["extra"], f"{place}.extra")
        track.load_memory(snapshot["extra"])
    load_state(track, saved)


def _like(model: Any, found: Any, where: str) -> None:
    """Raise TypeError unless ``found`` has the keys of ``model`` and values of its types; of lists, those of its first item."""
    if isinstance(model, dict):
        _expect(found, dict, where)
        for key, value in model.items():
            if key not in found:
                raise KeyError(f"{where}.{key} is missing")
            if key not in _OF_ITS_OWN:
                _like(value, found[key], f"{where}.{key}")
            elif value is not None:
                _expect(found[key], type(value), f"{where}.{key}")
    elif isinstance(model, list):
        _expect(found, list, where)
        for number, item in enumerate(found):
            if model:
                _like(model[0], item, f"{where}[{number}]")
            else:
                _expect(item, (float, int, str), f"{where}[{number}]")
    elif isinstance(model, float):
        _expect(found, (float, int), where)
    else:
        _expect(found, type(model), where)
        if isinstance(found, bool) is not isinstance(model, bool):
            raise TypeError(f"{where} is {found!r}")


def _expect(found: Any, kind: type | tuple[type, ...], where: str) -> None:
    if not isinstance(found, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{where} should be a {wanted} and is a {type(found).__name__}")


def _incident(found: Any, where: str) -> None:
    try:
        decode(Incident, found)
        incident_from_json(found)
    except KeyError as error:
        raise KeyError(f"{where}: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _snapshot(found: Any, module: nn.Module | None, where: str) -> None:
    model = {"step": 0, "parameters": {}, "buffers": {}, "optimizer_state": {}, "extra": {}}
    _like(model, found, where)
    if unknown := found.keys() - model.keys():
        raise KeyError(f"{where} has an unknown entry {sorted(unknown)[0]!r}")
    for name, state in found["optimizer_state"].items():
        _expect(state, dict, f"{where}.optimizer_state.{name}")
    live: dict[str, Tensor] = {}
    if module is not None:
        live = {clean(name): value for name, value in (*module.named_parameters(), *module.named_buffers())}
    for kind in ("parameters", "buffers"):
        for name, value in found[kind].items():
            _expect(value, Tensor, f"{where}.{kind}.{name}")
            mine = live.get(name)
            if mine is not None and not is_lazy(mine) and mine.shape != value.shape:
                shapes = f"{tuple(value.shape)} there and {tuple(mine.shape)} in the module"
                raise ValueError(f"{where}: the shape of {name} is {shapes}")
