"""The record of a run. One idea: incidents as they open, go on and close, and whom they are told to."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.notices import Notices
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.window import WindowAccumulator
from lightning_gradguard.records import (
    Action,
    Form,
    GradientStatistics,
    Incident,
    Suspect,
    Testimony,
    TrialRecord,
    Verdict,
    to_json,
)
from lightning_gradguard_tensorboard.telling import improved

KEPT_ACTIONS = 20
KEPT_INCIDENTS = 200
EARLY_WIDTHS = 10
"""A window covers at most a tenth of the run so far: the first steps, where most runs break, are shown one by one."""


class Recorder:
    """Keep the incidents of a run and tell them, with the windows between, to sinks that may fail.

    Args:
        sinks: Where the record goes; one that raises is dropped with one warning.
        log_every: Optimizer steps between two windows.

    Attributes:
        incidents: Oldest first, the open ones included.
    """

    def __init__(self, sinks: Iterable[Sink], log_every: int) -> None:
        self.sinks = list(sinks)
        self.log_every = log_every
        self.incidents: list[Incident] = []
        self._warned: set[str] = set()
        self._untold: set[int] = set()

    @property
    def count(self) -> int:
        """How many incidents the run has had, of which the newest are kept."""
        return self.incidents[-1].number if self.incidents else 0

    def record(
        self,
        incident: Incident | None,
        action: Action,
        suspects: tuple[Suspect, ...],
        *,
        optimizer: int,
        form: Form,
        batch_index: int | None,
        trials: Sequence[TrialRecord] = (),
        bundle: str = "",
        witnessed: tuple[Testimony, ...] = (),
    ) -> Incident:
        """Add an alarming step to an optimizer's open incident, or open one with it; return the incident as it is now.

        Args:
            incident: The open one, or None.
            action: What was found and done.
            suspects: Who is suspected of it.
            optimizer: The optimizer's position.
            form: The form of trouble, for an incident that opens.
            batch_index: The number of the batch.
            trials: How the trials of the incident have ended so far.
            bundle: The file with the evidence of this step, or empty.
            witnessed: What had left its usual level before this alarm, for an incident that opens.
        """
        event: Event = "acted"
        if incident is None:
            event = "opened"
            incident = Incident(self.count + 1, optimizer, action.step, form, batch=batch_index, witnessed=witnessed)
            self.incidents = [*self.incidents[-KEPT_INCIDENTS + 1 :], incident]
        changed = not incident.actions or incident.actions[-1].decision.remedies != action.decision.remedies
        incident = dataclasses.replace(
            incident,
            actions=_shortened((*incident.actions, action)),
            alarms=incident.alarms + 1,
            blame=_blamed(incident, suspects),
            trials=tuple(trials),
            bundle=bundle or incident.bundle,
        )
        self.replace(incident)
        self._untold.add(incident.number)
        if event == "opened" or changed or incident.alarms.bit_count() == 1:
            self._tell_of(incident, event)
        return incident

    def _tell_of(self, incident: Incident, event: Event) -> None:
        self._untold.discard(incident.number)
        self.tell("incident", incident, event)

    def close_incident(
        self, incident: Incident, step: int, trials: Sequence[TrialRecord], *, in_vain: bool = False
    ) -> None:
        """Close an incident.

        A treatment that was kept has helped if the loss is the better for it; none did if all were taken back.

        Args:
            incident: The incident.
            step: Where it ends.
            trials: The treatments that were tried.
            in_vain: Whether the run is no better than before the trouble, though it is out of it.
        """
        outcomes, told = {trial.outcome for trial in trials}, to_json(incident)
        better = any(improved(to_json(trial), told) for trial in trials)
        helped = True if better and not in_vain else False if outcomes == {"taken back"} else None
        closed = dataclasses.replace(incident, closed=step, helped=helped, trials=tuple(trials))
        self.replace(closed)
        self._tell_of(closed, "closed")

    def replace(self, incident: Incident) -> None:
        """Put a newer version of an incident in place of the old."""
        self.incidents = [incident if i.number == incident.number else i for i in self.incidents]

    def add(
        self,
        windows: WindowAccumulator,
        statistics: GradientStatistics,
        coefficient: float,
        *,
        alarm: bool,
        steps: int,
        since: int | None,
    ) -> bool:
        """Take in a step of an optimizer; return whether its window is full, sooner where something was done.

        Args:
            windows: Where its steps are added up.
            statistics: The step.
            coefficient: What its gradients were multiplied by.
            alarm: Whether it was an alarming one.
            steps: Steps that the optimizer has made.
            since: The step at which its open incident began, or None.
        """
        windows.add(statistics, coefficient, alarm=alarm)
        few = max(1, self.log_every // 5)
        # In trouble, and while a treatment is on trial, more is worth seeing.
        full = min(self.log_every if since is None else few, 1 + steps // EARLY_WIDTHS)
        begins = alarm and since == statistics.step
        return begins or windows.steps >= full or (coefficient < 1.0 and windows.steps >= self.log_every // 5)

    def show(
        self, steps: int, step: int, optimizer: int, names: Sequence[str], grads: Sequence[Tensor], grad_scale: float
    ) -> None:
        """Show the sinks the gradients of an optimizer that has made ``steps``, once in ``log_every``."""
        if steps % self.log_every == 0:
            self.tell("gradients", step, optimizer, names, grads, grad_scale)

    def notice(self, noticed: Notices, step: int, verdict: Verdict) -> None:
        """Send a verdict that asks for no remedy to the sinks, if it is due."""
        if noticed.due(verdict.detector, step):
            self.tell("notice", step, f"{verdict.form}: {verdict.reason}")

    def tell(self, what: str, *args: Any) -> None:
        """Call one method of every sink."""
        for sink in list(self.sinks):
            try:
                getattr(sink, what)(*args)
            except Exception as error:  # A full disk or a closed writer must never cost the run.
                self.sinks.remove(sink)
                with suppress(Exception):  # it lets go of its files as well as it can
                    sink.close()
                self.warn(type(sink).__name__, f"{type(sink).__name__} failed and is switched off: {error!r}")

    def report(self) -> str:
        """Return what happened, one line an incident, and below it what was found, tried, kept and taken back."""
        lines = []
        for i in self.incidents:
            culprit = i.where()
            reason = wording.reason(i.actions[0]) if i.actions else ""
            done = f"{wording.acts(i)}: {wording.result(i)}"
            line = f"incident {i.number} at step {i.step}: {i.form}{culprit} ({reason}); {done}"
            lines += [line, *(f"  {name}: {text}" for name, text in wording.findings(i))]
        return "\n".join(lines) or "no incident"

    def warn(self, key: str, message: str) -> None:
        """Warn once of each ``key``."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"GradGuard: {message}", RuntimeWarning, stacklevel=2)

    def say(self, step: int, key: str, message: str, *, once: bool = False) -> None:
        """Tell every sink of something that was found or put right, and warn once of each ``key``.

        Warnings alone are not enough: many a notebook switches them off.
        """
        if not (once and key in self._warned):
            self.tell("notice", step, f"state: {message}")
        self.warn(key, message)

    def close(self) -> None:
        """Close the sinks and let go of them, once they know how many alarms an open incident has come to."""
        for incident in self.incidents:
            if incident.number in self._untold and incident.closed is None:
                self._tell_of(incident, "acted")
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:
                self.warn(type(sink).__name__, f"{type(sink).__name__} could not be closed: {error!r}")
        self.sinks.clear()


def _shortened(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    half = KEPT_ACTIONS // 2
    return actions if len(actions) <= KEPT_ACTIONS else actions[:half] + actions[-half:]


def _blamed(incident: Incident, suspects: tuple[Suspect, ...]) -> tuple[Suspect, ...]:
    """Return whom an incident blames once more suspects have been named."""
    # The first suspects named stay: what is measured after a remedy is the remedy's work, unless it went back in order
    # to measure. What an optimizer was given no remedy has made.
    if suspects and suspects[0].part == "optimizer":
        return suspects
    last = incident.actions[-1] if incident.actions else None
    looked = last is not None and last.decision.look and bool(last.outcomes)
    return suspects if looked and suspects and not suspects[0].is_batch else incident.blame or suspects
