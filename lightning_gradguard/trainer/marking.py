"""Checkpoints that a run saves: each is marked with what is known of its weights, and the last healthy one is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.evidence.checkpoints import MARK_KEY, mark
from lightning_gradguard.evidence.healthy_copy import HealthyCopy
from lightning_gradguard.policy.act import ON_TRIAL
from lightning_gradguard.records import CheckpointRecord, Incident, StepReport
from lightning_gradguard.trainer.checkpoints import saved_by

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def _nobody(record: CheckpointRecord) -> None:
    """Hear a verdict, and do nothing."""


class CheckpointMarks(Sink):
    """Mark checkpoints, and tell the verdict on each; what a ModelCheckpoint does is left to it.

    Args:
        tell: Told of each verdict; by default nobody is.
    """

    def __init__(self, tell: Callable[[CheckpointRecord], None] = _nobody) -> None:
        self._tell = tell
        self._copy = HealthyCopy()
        self._saving: CheckpointRecord | None = None
        # Those of which no step has been judged yet; those that an open incident speaks against.
        self._untried: list[CheckpointRecord] = []
        self._doubtful: list[CheckpointRecord] = []
        self._known: dict[str, int] = {}

    def mark(self, checkpoint: dict[str, Any], step: int, incidents: Sequence[Incident]) -> None:
        """Put the verdict into a checkpoint that is about to be saved, from which ``step`` will be made."""
        self._saving = _verdict(step, incidents)
        checkpoint[MARK_KEY] = mark(self._saving)

    def look(self, trainer: Trainer) -> None:
        """Find what was saved since the last look, and tell the verdict on it."""
        verdict, self._saving = self._saving, None
        if verdict is None or not trainer.is_global_zero:
            return
        for path in _new(trainer, self._known):
            record = CheckpointRecord(str(path), verdict.step, verdict.healthy, verdict.reason, verdict.incident)
            self._tell(record)
            if record.healthy:
                self._copy.saved(path)
            (self._untried if record.healthy else self._doubtful).append(record)

    def judged(self, report: StepReport) -> None:
        """Learn what was found at a step: where nothing was amiss, what was saved before it is healthy."""
        if self._untried and report.verdict is None and self._untried[-1].step <= report.statistics.step:
            self._copy.judged(healthy=True)
            self._untried.clear()

    def incident(self, incident: Incident, event: Event) -> None:
        """Tell of untried checkpoints: doubtful when an incident opens, and what became of them when it closes."""
        if event == "opened":
            self._copy.judged(healthy=False)
            self._copy.show()
            for one in self._untried:
                why = "the step after it raised an alarm"
                self._doubtful.append(CheckpointRecord(one.path, one.step, False, why, incident.number))
                self._tell(self._doubtful[-1])
            self._untried.clear()
        elif event == "closed":
            good = incident.stopped is None and incident.helped is not False and not _untreated(incident)
            how = "calm again" if good else "no treatment helped" if incident.stopped is None else "the run was ended"
            for one in self._doubtful:
                why = f"incident {incident.number} ended at step {incident.closed}: {how}"
                self._tell(CheckpointRecord(one.path, one.step, good, why, incident.number))
            self._doubtful.clear()

    def close(self) -> None:
        """Let go of all of it."""
        self._copy.close()
        self._untried.clear()
        self._doubtful.clear()
        self._known.clear()
        self._saving = None


def _verdict(step: int, incidents: Sequence[Incident]) -> CheckpointRecord:
    if (untreated := next(filter(_untreated, incidents), None)) is not None:
        reason = f"incident {untreated.number}, at step {untreated.step}, called for a treatment, and was only watched"
        return CheckpointRecord("", step, False, reason, untreated.number)
    incident = incidents[-1] if incidents else None
    if incident is None or (incident.closed is not None and incident.stopped is None):
        return CheckpointRecord("", step, True)
    since = f"incident {incident.number}, at step {incident.step}"
    reason = f"{since}, is open" if incident.stopped is None else f"the run was ended by {since}"
    return CheckpointRecord("", step, False, reason, incident.number)


def _untreated(incident: Incident) -> bool:
    """Return whether a treatment was called for and none was made, as in a run that is only watched.

    No more alarms speak for no weights then: a network that is dead raises none.
    """
    called_for = any(ON_TRIAL & set(action.decision.remedies) for action in incident.actions)
    return called_for and not any(action.outcomes for action in incident.actions)


def _new(trainer: Trainer, known: dict[str, int]) -> list[Path]:
    """Return the checkpoints that were written since the last look."""
    found = []
    for name in (path for one in trainer.checkpoint_callbacks for path in saved_by(one)):
        path = Path(name)
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            continue  # Rotated away, or on no disk of this machine.
        if known.get(name) != written:
            known[name] = written
            found.append(path)
    # last.ckpt may be a link to another one: each file once, and that by its own name first.
    return sorted(found, key=lambda path: path.is_symlink())
