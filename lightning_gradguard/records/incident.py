"""What is done about a step, and the incident that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_gradguard.records.measured import GradientStatistics
from lightning_gradguard.records.verdict import Form, Suspect, Verdict
from lightning_gradguard.records.witnessed import Testimony


@dataclass(frozen=True, slots=True)
class Decision:
    """Which remedies to apply, in order, and why.

    Args:
        remedies: Names of remedies (``"clip"``, ``"skip"``, ``"backoff"``, ``"rollback"``, ``"reinitialize"``, ...).
        reason: One sentence for a person.
        cause: What is at fault, a value of :class:`lightning_gradguard.attribution.cause.Cause`; empty in journals of
            older versions.
        exhausted: True when the budget is spent and the run should end as the user chose.
        look: True if the layers are measured in the next batch, whose step is skipped, before anything is treated.
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
        coefficient: What the gradients were multiplied by: 1.0 untouched, 0.0 when the step is skipped.
        back_to: Step, in the record's own count, that the weights went back to; None where they did not.
    """

    remedy: str
    applied: bool
    detail: str
    layers: tuple[str, ...] = ()
    coefficient: float = 1.0
    back_to: int | None = None

    @property
    def skips(self) -> bool:
        """Whether it keeps the step from being made, whatever the remedy is called."""
        return self.applied and self.coefficient == 0.0


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
        outcome: ``"kept"`` if the losses were the better for it, ``"taken back"`` if not, ``"calm"`` where no loss was
            known.
        before: Median of the loss before the trouble, in the run as the user wrote it; NaN if unknown. Of a run that
            had learned nothing that of its first losses, nine at most, or the very first where updates replaced all of
            the weights.
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
        helped: True if a treatment was kept and the loss was the better for it; False if none was kept, or the budget
            was spent; None while open, where one stays of which that cannot be said (the run may be out of the trouble,
            not shown to be better than before it), and where first aid was all, of which nothing can be measured.
        trials: The treatments that were tried, and what became of them.
        stopped: Step at which the guard ended the run because of it, or None where it did not.
        bundle: File with the evidence of its first alarm, as one process has written it, or empty.
        witnessed: What had left its usual level in the last windows before the first alarm.
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
    bundle: str = ""
    witnessed: tuple[Testimony, ...] = ()

    def _repr_html_(self) -> str:
        from lightning_gradguard.records.plain import to_json
        from lightning_gradguard_tensorboard.card import incident_html  # only now: most runs see no notebook

        return incident_html(to_json(self))

    def __str__(self) -> str:
        """Return it in one sentence, in the words that the console and the tab have."""
        from lightning_gradguard.records.plain import to_json
        from lightning_gradguard_tensorboard.card import incident_text

        return incident_text(to_json(self))

    @property
    def culprit(self) -> str | None:
        """The first suspect's name, or None where nobody is blamed."""
        return self.blame[0].layer if self.blame else None

    def where(self, layer: str = "{}", escape: Callable[[str], str] = str) -> str:
        """Return ``", first in conv4"``, or ``", the batch of rank 1"``; an empty string where nobody is blamed.

        Args:
            layer: How a layer's name is set off.
            escape: Makes a name fit for where it is written.
        """
        if not self.blame:
            return ""
        from lightning_gradguard.records.plain import to_json
        from lightning_gradguard_tensorboard.telling import named

        told = escape(named(to_json(self.blame[0])))
        return f", first in {layer.format(told)}" if self.blame[0].is_module else f", {told}"

    @property
    def remedies(self) -> tuple[str, ...]:
        """Names of the remedies that were applied, in order of first use."""
        applied = (o.remedy for a in self.actions for o in a.outcomes if o.applied)
        return tuple(dict.fromkeys(applied))
