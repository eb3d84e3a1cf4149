"""Records that the tests of the diagnostics share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_gradguard.records import Action, Decision, Incident, Outcome, Suspect, Verdict, Window

HOSTILE = "a|`b`_*c*<script>alert(1)</script>\x1b[31m\n# d"


def window(
    tick: int = 0, *, layers: tuple[str, ...] = ("conv1", "conv2", "fc"), every: int = 25, **changes: Any
) -> Window:
    """Return a healthy window; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "step": tick * every + every - 1,
        "first_step": tick * every,
        "optimizer": 0,
        "tick": tick,
        "norm_peak": 2.0,
        "norm_before": 1.0,
        "norm_after": 0.5,
        "typical": 1.0,
        "limit": 10.0,
        "coefficient": 0.5,
        "lr_factor": 1.0,
        "clipped": 1,
        "skipped": 0,
        "incidents": 0,
        "loss": 0.25,
        "layers": layers,
        "layer_peaks": np.linspace(1.0, 2.0, len(layers)),
        "layer_nonfinite": np.zeros(len(layers)),
    }
    return Window(**{**fields, **changes})


def incident(number: int = 1, step: int = 40, *, layer: str = "conv2", **changes: Any) -> Incident:
    """Return an incident with one action and one suspect; ``changes`` replace fields."""
    verdict = Verdict(
        "non-finite", "non-finite", math.nan, math.inf, f"the gradient of {layer} is not finite", (layer,)
    )
    action = Action(step, verdict, Decision(("skip",), "first in line"), (Outcome("skip", True, "skipped the step"),))
    blame = (Suspect(layer, 4.0, f"the output of {layer} is 57 times its input", forward_gain=57.0),)
    fields: dict[str, Any] = {"form": "non-finite", "actions": (action,), "blame": blame, "batch": 7, "alarms": 1}
    return Incident(number, 0, step, **{**fields, **changes})
