"""What is made of a step: a verdict, and the suspects that the evidence speaks against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal[
    "sudden",
    "drift",
    "recurrent",
    "non-finite",
    "overflow",
    "cold-start",
    "divergence",
    "rate",
    "state",
    "vanishing",
]
"""The forms of trouble. ``overflow`` is a GradScaler whose scale keeps falling; ``divergence`` is seen in the loss,
``state`` in the optimizer's own. ``rate``, a rate that had leapt, is found in journals of older versions only."""

BATCH = "batch"
"""What a suspect is called that is no layer but the data."""
LOSS = "loss function"
"""What a suspect is called that lies between the last module's output and the loss."""
MACHINE = "machine"
"""What a suspect is called that computed a step wrongly."""
OPTIMIZER = "optimizer"
"""What a suspect is called that makes the updates."""
Part = Literal["layer", "activation", "loss", "optimizer"]


GENTLE = 10.0
"""Excess over the limit below which a spike is clipped; above, its direction is not worth following."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector says of one step, with its evidence.

    Args:
        form: The form of trouble.
        detector: Name of the detector that speaks.
        value: What was measured (for most detectors the global gradient norm).
        limit: What it was compared with.
        reason: One sentence for a person.
        layers: Layers the evidence points at, worst first; may be empty.
        alarm: True asks for a remedy; False only reports.
        examine: True if a remedy is asked for only where a layer is found damaged: what was seen has innocent causes.
    """

    form: Form
    detector: str
    value: float
    limit: float
    reason: str
    layers: tuple[str, ...] = ()
    alarm: bool = True
    examine: bool = False

    @property
    def excess(self) -> float:
        """``value / limit``; infinite where either is not finite, so that a NaN counts as the worst."""
        if math.isfinite(self.value) and math.isfinite(self.limit) and self.limit > 0:
            return self.value / self.limit
        return math.inf

    # What a verdict means is asked here and nowhere else.

    @property
    def of_one_step(self) -> bool:
        """Whether it is said of this step alone, so that first aid may be all that it takes."""
        return self.form in ("sudden", "non-finite")

    @property
    def stands_out(self) -> bool:
        """Whether the step is unlike those before it: a spike of its gradients, or of its loss."""
        return self.form == "sudden"

    @property
    def gentle(self) -> bool:
        """Whether the step stands out no farther than its direction is still worth following."""
        return self.stands_out and self.excess < GENTLE

    @property
    def drifts(self) -> bool:
        """Whether norms have been growing for long."""
        return self.form == "drift"

    @property
    def diverges(self) -> bool:
        """Whether the loss says that the run is being lost."""
        return self.form == "divergence"

    @property
    def endless(self) -> bool:
        """Whether norm and loss have gone beyond all that they were: by weights that run away, or by their unit."""
        return self.diverges and self.detector == "drift"

    @property
    def unbounded(self) -> bool:
        """Whether it is the objective that is at fault: its loss falls on and on as the gradients grow."""
        return self.endless and self.value < 0.0

    @property
    def of_a_start(self) -> bool:
        """Whether the run was bad from its first step."""
        return self.form == "cold-start"

    @property
    def of_optimizer(self) -> bool:
        """Whether it was seen in the optimizer's own state."""
        return self.form == "state"

    @property
    def can_recur(self) -> bool:
        """Whether the same trouble may come back after it was calmed, and is then called recurrent."""
        return self.form in ("sudden", "drift", "divergence")

    @property
    def against_the_run(self) -> bool:
        """Whether the run itself is lost, whatever the layers look like, and not one step of it."""
        return (self.diverges or self.of_a_start) and not self.examine


@dataclass(frozen=True, slots=True)
class Suspect:
    """One suspect: a layer (or the batch) with the evidence against it.

    Args:
        layer: Qualified module name; :data:`BATCH` accuses the data, :data:`LOSS` what makes the loss of the output,
            :data:`MACHINE` what computed the step, :data:`OPTIMIZER` what makes the updates.
        score: Natural logarithm of how far the strongest evidence lies above what is healthy; higher is worse.
        forward_gain: RMS(out) / RMS(in), or None where it was not measured.
        backward_gain: ||dL/d in|| / ||dL/d out||, or None where it was not measured.
        weight_ratio: RMS of the weights over what its history, or its fan, calls for; None where unknown.
        reason: One sentence for a person.
        broken: True if its parameters are NaN or inf, which no batch can be blamed for.
        part: What of a training program it is.
        rank: The process that saw it, where it is a batch and several processes train together, or that of a machine.
        samples: Positions in the batch of the samples that are beyond what is healthy.
        kind: Type of a function, or the numbers of an optimizer that are odd; empty for others.
    """

    layer: str
    score: float
    reason: str
    forward_gain: float | None = None
    backward_gain: float | None = None
    weight_ratio: float | None = None
    broken: bool = False
    part: Part = "layer"
    rank: int | None = None
    samples: tuple[int, ...] = ()
    kind: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether a module with parameters is accused."""
        return self.part == "layer" and self.layer not in (BATCH, MACHINE)

    @property
    def is_module(self) -> bool:
        """Whether it bears a module's name."""
        return self.layer not in (BATCH, LOSS, MACHINE, OPTIMIZER)

    @property
    def is_batch(self) -> bool:
        """Whether the data are accused, and no layer."""
        return self.layer == BATCH

    @property
    def is_machine(self) -> bool:
        """Whether a machine is accused, which computed a step wrongly."""
        return self.layer == MACHINE


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Rebuild a verdict from what :func:`to_json` made of it."""
    numbers = {key: float(data[key]) for key in ("value", "limit")}
    # Older versions wrote whether it was grave.
    known = {key: value for key, value in data.items() if key != "grave"}
    return Verdict(**{**known, **numbers, "layers": tuple(data["layers"])})
