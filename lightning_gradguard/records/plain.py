"""Records as JSON, and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from lightning_gradguard.records.incident import Action, Decision, Incident, Outcome, TrialRecord
from lightning_gradguard.records.verdict import Suspect, verdict_from_json
from lightning_gradguard.records.witnessed import Testimony


def to_json(value: Any) -> Any:
    """Turn a record into what ``json.dumps(..., allow_nan=False)`` takes.

    JSON has no inf and no NaN, so they become the strings ``"inf"``, ``"-inf"`` and ``"nan"``; ``float`` reads them
    back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [to_json(v) for v in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def incident_from_json(data: dict[str, Any]) -> Incident:
    """Rebuild an incident from what :func:`to_json` made of it."""

    def floats(record: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {**record, **{key: float(record[key]) for key in keys if record.get(key) is not None}}

    def action(a: dict[str, Any]) -> Action:
        # Older versions wrote a factor on the rate and whether it was permanent, which the bracket of the rate knows
        # now.
        decision = {k: v for k, v in a["decision"].items() if k not in ("factor", "permanent")}
        return Action(
            step=int(a["step"]),
            verdict=verdict_from_json(a["verdict"]),
            decision=Decision(**{**decision, "remedies": tuple(decision["remedies"])}),
            outcomes=tuple(Outcome(**{**o, "layers": tuple(o["layers"])}) for o in a["outcomes"]),
        )

    def suspect(b: dict[str, Any]) -> Suspect:
        numbers = floats(b, "score", "forward_gain", "backward_gain", "weight_ratio")
        return Suspect(**{**numbers, "samples": tuple(b.get("samples", ()))})

    blame = map(suspect, data["blame"])
    trials = (
        TrialRecord(**{**floats(t, "before", "trouble", "after"), "treatment": tuple(t["treatment"])})
        for t in data.get("trials", ())
    )
    witnessed = (Testimony(**floats(w, "value", "usual")) for w in data.get("witnessed", ()))
    lists = {"blame": tuple(blame), "trials": tuple(trials), "witnessed": tuple(witnessed)}
    return Incident(**{**data, "actions": tuple(map(action, data["actions"])), **lists})
