"""What the stages of the guard hand to each other: small, frozen, typed records.

Every record can be written to the journal as JSON with :func:`to_json`; none of them holds a tensor.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
"""The forms of trouble. ``overflow`` is a GradScaler whose scale keeps falling; ``divergence`` is seen in the loss, ``state`` in the
optimizer's own. ``rate``, a rate that had leapt, is found in journals of older versions only."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GradientStatistics:
    """The gradients of one optimizer step, reduced to numbers on the host.

    Args:
        step: Count of optimizer steps before this one.
        names: Parameter names, in the optimizer's order; only parameters that have a gradient.
        norms: L2 norm of each gradient, shape ``(len(names),)``, already unscaled; may hold NaN and inf.
        norm: Global L2 norm, the root of the sum of the squared ``norms``.
        loss: The loss of this step (mean over its micro-batches), or None where it is not known.
        rate: The largest learning rate of the parameter groups, after any back-off; None where asking would cost.
        update_ratio: Largest predicted ``||update|| / ||weight||`` over the weights; measured on the first steps, and where
            the rate leaps.
        normalised: True if the size of an update does not depend on the gradient's (Adam and its kind).
        weight_norm: Global L2 norm of the weights; measured on the first steps only.
        weight_excess: Largest RMS of a weight over what its fan calls for; measured on the first steps only.
        growth: Growth of the signal's RMS from input to output at the first step, where the network is fresh; None where it was not
            measured.
        variation: How much the network's output depends on its input (deviation over a batch by RMS); measured where a run has not moved.
        spoilt: What is wrong with the optimizer's state; looked at only where somebody else wrote to it.
        nonfinite: ``(name, count of elements)`` of gradients that hold NaN or inf; filled on suspicion only.
        scaled: True if a GradScaler owns this step, so that an overflow is expected now and then.
    """

    step: int
    names: tuple[str, ...]
    norms: FloatArray
    norm: float
    loss: float | None = None
    rate: float | None = None
    update_ratio: float | None = None
    normalised: bool = False
    weight_norm: float | None = None
    weight_excess: float | None = None
    growth: float | None = None
    variation: float | None = None
    spoilt: str | None = None
    nonfinite: tuple[tuple[str, int], ...] = ()
    scaled: bool = False

    @property
    def finite(self) -> bool:
        """Whether the global norm is a finite number."""
        return math.isfinite(self.norm)


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


@dataclass(frozen=True, slots=True)
class Suspect:
    """One suspect: a layer (or the batch) with the evidence against it.

    Args:
        layer: Qualified module name; ``"batch"`` accuses the data.
        score: Natural logarithm of how far the strongest evidence lies above what is healthy; higher is worse.
        forward_gain: RMS(out) / RMS(in), or None where it was not measured.
        backward_gain: ||dL/d in|| / ||dL/d out||, or None where it was not measured.
        weight_ratio: RMS of the weights over what its history, or its fan, calls for; None where unknown.
        reason: One sentence for a person.
        broken: True if its parameters are NaN or inf, which no batch can be blamed for.
    """

    layer: str
    score: float
    reason: str
    forward_gain: float | None = None
    backward_gain: float | None = None
    weight_ratio: float | None = None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Which remedies to apply, in order, and why.

    Args:
        remedies: Names of remedies (``"clip"``, ``"skip"``, ``"backoff"``, ``"rollback"``, ``"reinitialize"``, ...).
        reason: One sentence for a person.
        cause: What is at fault, a value of :class:`lightning_gradguard.attribution.cause.Cause`; empty in journals of older versions.
        exhausted: True when the budget is spent and the run should end as the user chose.
        look: True if the layers are measured in the next batch, whose step is held, before anything is treated.
        again: True if this is a lower rate within the trial under way.
        last: True if no other treatment is left for this cause.
        resign: True if no treatment is left, so that the run goes on as the user wrote it, with first aid only.
    """

    remedies: tuple[str, ...]
    reason: str
    cause: str = ""
    exhausted: bool = False
    look: bool = False
    again: bool = False
    last: bool = False
    resign: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one remedy did.

    Args:
        remedy: Its name.
        applied: False if it could not act.
        detail: One sentence for a person.
        layers: Layers whose weights were changed.
        coefficient: What the gradients were multiplied by: 1.0 untouched, 0.0 when the step is held.
        back_to: Step, in the record's own count, that the weights went back to; None where they did not.
    """

    remedy: str
    applied: bool
    detail: str
    layers: tuple[str, ...] = ()
    coefficient: float = 1.0
    back_to: int | None = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What the guard did with one step.

    Args:
        statistics: The gradients as they arrived; on a GPU, where nothing is amiss, those of the step before.
        verdict: What was wrong, or None.
        decision: What was decided, or None.
        outcomes: What the remedies did.
        skipped: True if the update will touch nothing.
        stop: True if the budget is spent and the run should end.
    """

    statistics: GradientStatistics
    verdict: Verdict | None = None
    decision: Decision | None = None
    outcomes: tuple[Outcome, ...] = ()
    skipped: bool = False
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """One alarming step inside an incident: verdict, decision and outcomes."""

    step: int
    verdict: Verdict
    decision: Decision
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A treatment and what became of it.

    Args:
        cause: What was found to be at fault.
        treatment: Names of the remedies.
        opened: Step at which it was made.
        closed: Step at which it ended.
        outcome: ``"kept"`` if the losses were the better for it, ``"taken back"`` if not, ``"calm"`` where no loss was known.
        before: Level of the loss before the trouble (of a run that had learned nothing, the first loss); NaN if unknown.
        trouble: Level in the trouble, before the treatment; NaN if unknown.
        after: Level at the end of the trial; NaN if unknown.
    """

    cause: str
    treatment: tuple[str, ...]
    opened: int
    closed: int
    outcome: str
    before: float
    trouble: float
    after: float


@dataclass(frozen=True, slots=True)
class Incident:
    """An episode of trouble, from its first alarm until the run is calm again.

    Args:
        number: 1 for the first incident of the run.
        optimizer: Index of the optimizer it concerns.
        step: Step of the first alarm.
        form: Form of the first alarm, raised to ``"recurrent"`` when the trouble came back.
        actions: The alarming steps so far, oldest first; at most the first ten and the last ten are kept.
        blame: Suspects, worst first.
        batch: Index of the batch that was being trained on, or None.
        alarms: Count of alarming steps, those not kept in ``actions`` included.
        closed: Step at which the incident ended, or None while it is open.
        helped: True if a treatment was kept, since the losses were the better for it; False if none was, or the budget was spent; None
            while open, and where first aid was all, of which nothing can be measured but that the run became calm.
        trials: The treatments that were tried, and what became of them.
        stopped: Step at which the guard ended the run because of it, or None where it did not.
    """

    number: int
    optimizer: int
    step: int
    form: Form
    actions: tuple[Action, ...] = ()
    blame: tuple[Suspect, ...] = ()
    batch: int | None = None
    alarms: int = 0
    closed: int | None = None
    helped: bool | None = None
    trials: tuple[TrialRecord, ...] = ()
    stopped: int | None = None

    @property
    def culprit(self) -> str | None:
        """The first suspect's name, or None where nobody is blamed."""
        return self.blame[0].layer if self.blame else None

    @property
    def remedies(self) -> tuple[str, ...]:
        """Names of the remedies that were applied, in order of first use."""
        applied = (o.remedy for a in self.actions for o in a.outcomes if o.applied)
        return tuple(dict.fromkeys(applied))


@dataclass(frozen=True, slots=True)
class Window:
    """The steps since the last window was logged, as the diagnostics need them.

    Args:
        step: The last optimizer step in the window.
        first_step: The first.
        optimizer: Index of the optimizer.
        tick: Count of windows so far; never goes back, not even on a rollback.
        norm_peak: Largest global norm before any remedy; inf or NaN if one was seen. The overflows that a GradScaler expects do
            not count: 0.0 if there was nothing else.
        norm_before: Global norm of the last step, before any remedy; 0.0 for such an overflow.
        norm_after: The same after clipping; 0.0 for a held step.
        typical: Centre of the healthy band, NaN while there is no history.
        limit: Limit of the detector, NaN while there is no history.
        coefficient: Smallest clip coefficient in the window, 1.0 when nothing was clipped.
        lr_factor: Factor on the learning rate now.
        clipped: Steps clipped so far.
        skipped: Steps held so far.
        incidents: Incidents so far.
        loss: Last loss, or None.
        layers: Layer names, in forward order where that is known.
        layer_peaks: Largest finite gradient norm of each layer in the window, shape ``(len(layers),)``.
        layer_nonfinite: Count of steps with a non-finite gradient, shape ``(len(layers),)``; expected overflows do not count.
        overflows: Steps so far that a GradScaler skipped by itself, as it is expected to now and then.
        peak_step: The step of ``norm_peak``; None in records of older versions.
        loss_low: Smallest finite loss in the window, NaN where none is known.
        loss_high: Largest finite loss.
        loss_mean: Mean of the finite losses.
        rate: The learning rate that the last update was made with, any back-off included; NaN where asking would cost.
        rate_good: The largest that the run is known to have learned with; 0.0 if none is, NaN in records of older versions.
        rate_bad: The smallest that is known to have lost the run; inf if none is.
    """

    step: int
    first_step: int
    optimizer: int
    tick: int
    norm_peak: float
    norm_before: float
    norm_after: float
    typical: float
    limit: float
    coefficient: float
    lr_factor: float
    clipped: int
    skipped: int
    incidents: int
    loss: float | None
    layers: tuple[str, ...]
    layer_peaks: FloatArray = field(repr=False)
    layer_nonfinite: FloatArray = field(repr=False)
    overflows: int = 0
    peak_step: int | None = None
    loss_low: float = math.nan
    loss_high: float = math.nan
    loss_mean: float = math.nan
    rate: float = math.nan
    rate_good: float = math.nan
    rate_bad: float = math.nan


def to_json(value: Any) -> Any:
    """Turn a record into what ``json.dumps(..., allow_nan=False)`` takes.

    JSON has no inf and no NaN, so they become the strings ``"inf"``, ``"-inf"`` and ``"nan"``; ``float`` reads them back.
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


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    """Rebuild a verdict from what :func:`to_json` made of it."""
    numbers = {key: float(data[key]) for key in ("value", "limit")}
    # Older versions wrote whether it was grave.
    known = {key: value for key, value in data.items() if key != "grave"}
    return Verdict(**{**known, **numbers, "layers": tuple(data["layers"])})


def incident_from_json(data: dict[str, Any]) -> Incident:
    """Rebuild an incident from what :func:`to_json` made of it."""

    def floats(record: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {**record, **{key: float(record[key]) for key in keys if record.get(key) is not None}}

    def action(a: dict[str, Any]) -> Action:
        # Older versions wrote a factor on the rate and whether it was permanent, which the bracket of the rate knows now.
        decision = {k: v for k, v in a["decision"].items() if k not in ("factor", "permanent")}
        return Action(
            step=int(a["step"]),
            verdict=verdict_from_json(a["verdict"]),
            decision=Decision(**{**decision, "remedies": tuple(decision["remedies"])}),
            outcomes=tuple(Outcome(**{**o, "layers": tuple(o["layers"])}) for o in a["outcomes"]),
        )

    blame = (Suspect(**floats(b, "score", "forward_gain", "backward_gain", "weight_ratio")) for b in data["blame"])
    trials = (
        TrialRecord(**{**floats(t, "before", "trouble", "after"), "treatment": tuple(t["treatment"])})
        for t in data.get("trials", ())
    )
    return Incident(
        **{**data, "actions": tuple(map(action, data["actions"])), "blame": tuple(blame), "trials": tuple(trials)}
    )


def plain_statistics(statistics: GradientStatistics | None) -> dict[str, Any]:
    """Return what the next step is compared with, in the same form where there is nothing yet."""
    seen = [] if statistics is None else [statistics]
    return {
        "step": [s.step for s in seen],
        "names": [name for s in seen for name in s.names],
        "norms": [norm for s in seen for norm in s.norms.tolist()],
        "loss": [s.loss for s in seen if s.loss is not None],
        "rate": [s.rate for s in seen if s.rate is not None],
    }


def statistics_from(plain: dict[str, Any]) -> GradientStatistics | None:
    """Make statistics of what :func:`plain_statistics` returned."""
    if not plain["step"]:
        return None
    norms, names = np.array(plain["norms"], dtype=np.float64), tuple(map(str, plain["names"]))
    loss, rate = (next(map(float, plain[key]), None) for key in ("loss", "rate"))
    return GradientStatistics(int(plain["step"][0]), names, norms, math.sqrt(norms.dot(norms)), loss=loss, rate=rate)
