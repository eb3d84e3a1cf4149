"""Take what can be used of a saved state, and name what cannot."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_gradguard.checkpoint.migration import VERSION, empty, over
from lightning_gradguard.checkpoint.rehearsal import rehearse, scratch
from lightning_gradguard.errors import GuardError
from lightning_gradguard.parts import Parts
from lightning_gradguard.track_state import state_of

# An open incident is of one piece with the treatment on trial.
_INCIDENT = ("incident", "trial", "treating", "trouble", "policy")


def usable(state: Any, module: nn.Module | None, parts: Parts) -> tuple[dict[str, Any], list[str]]:
    """Return what can be used of a state, completed by what is new since it was saved, and the names of what cannot.

    Without what was learned of healthy steps all else of an optimizer is of no use: a run that is known to be old, and
    of which nothing is known besides, would be taken for one that has learned nothing yet.

    Raises:
        PartError: A detector or remedy cannot save or load a state, and is not to be left out for it.
    """
    if not isinstance(state, dict) or state.get("version") != VERSION:
        return empty(), ["all of it"]
    found = _Salvage(module, parts)
    found.take_investigation(state)
    found.take_incidents(state.get("incidents"))
    found.take_optimizers(state.get("lanes"))
    return found.usable, found.forgotten


class _Salvage:
    """Take one piece after the other, each if it fits.

    Attributes:
        usable: What was taken.
        forgotten: The names of what was not.
    """

    def __init__(self, module: nn.Module | None, parts: Parts) -> None:
        self._module, self._parts = module, parts
        self.usable, self.forgotten = empty(), list[str]()
        self._fresh = state_of(scratch(parts))
        # A part that cannot load what it has just saved is at fault itself, and is not the state's business.
        rehearse({**self.usable, "lanes": {"0": self._fresh}}, None, parts)

    def _fits(self, **more: Any) -> bool:
        try:
            rehearse({**self.usable, **more}, self._module, self._parts)
        except GuardError:
            return False
        return True

    def take_investigation(self, state: dict[str, Any]) -> None:
        """Take the note of the optimizers for which layers are being measured."""
        for key in ("armed", "awaiting"):
            if key in state and self._fits(**{key: state[key]}):
                self.usable[key] = state[key]

    def take_incidents(self, incidents: Any) -> None:
        """Take each incident that is one."""
        if not isinstance(incidents, list):
            self.forgotten.append("incidents")
            return
        for number, incident in enumerate(incidents):
            if self._fits(incidents=[incident]):
                self.usable["incidents"].append(incident)
            else:
                self.forgotten.append(f"incidents[{number}]")

    def take_optimizers(self, tracks: Any) -> None:
        """Take what fits of each optimizer, and close the incidents that no optimizer has open."""
        if not isinstance(tracks, dict):
            self.forgotten.append("lanes")
            return
        for index, saved in tracks.items():
            whole = _completed(self._fresh, saved)
            if (kept := self._optimizer(index, whole)) is None:
                self.forgotten.append(f"all of optimizer {index}")
            else:
                self.usable["lanes"][index] = kept
        still = [kept["incident"] for kept in self.usable["lanes"].values() if kept["incident"] is not None]
        open_now = {(one["optimizer"], one["number"]) for one in still}
        self.usable["incidents"] = [
            one if (one["optimizer"], one["number"]) in open_now else over(one) for one in self.usable["incidents"]
        ]

    def _optimizer(self, index: str, saved: Any) -> dict[str, Any] | None:
        """Return what fits of one optimizer, None where its memory does not."""
        fresh = self._fresh
        known = set(fresh["memory"]["baseline"])
        if not isinstance(saved, dict) or not self._fits(lanes={index: {**fresh, "memory": saved.get("memory")}}):
            return None
        if not set(saved["memory"]["baseline"]) <= known:
            return None
        if self._fits(lanes={index: saved}):
            return saved
        kept = {**fresh, "memory": saved["memory"]}
        for group in (_INCIDENT, *((key,) for key in fresh if key not in _INCIDENT)):
            candidate = {**kept, **{key: saved[key] for key in group}}
            if self._fits(lanes={index: candidate}):
                kept = candidate
            else:
                self.forgotten += [f"{key} of optimizer {index}" for key in group]
        return kept


def _completed(model: Any, saved: Any) -> Any:
    """Return what was saved, completed by the defaults of what is new since; in snapshots too."""
    if not isinstance(model, dict) or not isinstance(saved, dict):
        return saved
    whole = {key: _completed(value, saved[key]) if key in saved else value for key, value in model.items()}
    whole = {**saved, **whole}
    for part, key in (("snapshots", "kept"), ("treating", "untreated")):
        if "memory" in model and isinstance(whole.get(part), dict) and isinstance(whole[part].get(key), list):
            copies = [
                {**one, "extra": _completed(model["memory"], one["extra"])}
                if isinstance(one, dict) and isinstance(one.get("extra"), dict)
                else one
                for one in whole[part][key]
            ]
            whole[part] = {**whole[part], key: copies}
    return whole
