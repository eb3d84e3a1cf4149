"""The record of a run: incidents as they open, go on and close, and whom they are told to."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.lane import Lane
from lightning_gradguard.records import Action, Blame, GradientStatistics, Incident, Verdict

KEPT_ACTIONS = 20
KEPT_INCIDENTS = 200
NOTICE_EVERY = 500
EARLY = 10
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

    def record(self, lane: Lane, action: Action, suspects: tuple[Blame, ...], batch_index: int | None) -> None:
        """Add an alarming step to the lane's incident, or open one with it."""
        event: Event = "acted"
        incident = lane.incident
        if incident is None:
            event = "opened"
            # The window under way ends here: what was healthy is not drawn in the colours of what comes now.
            if lane.meter.steps and lane.last is not None:
                self.log(lane, lane.last, 1.0)
            number = self.incidents[-1].number + 1 if self.incidents else 1
            form = lane.policy.form(action.verdict, action.step)
            incident = Incident(number, lane.index, action.step, form, batch=batch_index)
            self.incidents = [*self.incidents[-KEPT_INCIDENTS + 1 :], incident]
        changed = not incident.actions or incident.actions[-1].decision.remedies != action.decision.remedies
        alarms = incident.alarms + 1
        actions = (*incident.actions, action)
        if len(actions) > KEPT_ACTIONS:
            half = KEPT_ACTIONS // 2
            actions = actions[:half] + actions[-half:]
        # The first suspects named stay: what is measured after a remedy is the remedy's work, unless it went back in order to measure.
        last = incident.actions[-1] if incident.actions else None
        looked = last is not None and last.decision.look and bool(last.outcomes)
        named = suspects if looked and suspects and suspects[0].layer != "batch" else incident.blame or suspects
        lane.incident = dataclasses.replace(
            incident, actions=actions, alarms=alarms, blame=named, trials=tuple(lane.trials)
        )
        self.replace(lane.incident)
        if event == "opened" or changed or alarms & (alarms - 1) == 0:
            self.tell("incident", lane.incident, event)

    def close_incident(self, lane: Lane, step: int) -> None:
        """Close the lane's incident: it helped if a treatment was kept, and did not if all were taken back."""
        assert lane.incident is not None
        trials, lane.trials = tuple(lane.trials), []
        outcomes = {trial.outcome for trial in trials}
        helped = True if "kept" in outcomes else False if outcomes == {"taken back"} else None
        closed = dataclasses.replace(lane.incident, closed=step, helped=helped, trials=trials)
        self.replace(closed)
        lane.incident = None
        self.tell("incident", closed, "closed")

    def replace(self, incident: Incident) -> None:
        """Put a newer version of an incident in place of the old."""
        self.incidents = [incident if i.number == incident.number else i for i in self.incidents]

    def meter(self, lane: Lane, statistics: GradientStatistics, coefficient: float, *, alarm: bool) -> None:
        """Take in a step; send a window when it is full, sooner where something was done."""
        lane.last = statistics
        lane.meter.add(statistics, coefficient, alarm=alarm)
        # In trouble, and while a treatment is on trial, more is worth seeing.
        most = self.log_every if lane.incident is None else max(1, self.log_every // 5)
        full = min(most, 1 + lane.steps // EARLY)
        begins = alarm and lane.incident is not None and lane.incident.step == statistics.step
        if begins or lane.meter.steps >= full or (coefficient < 1.0 and lane.meter.steps >= self.log_every // 5):
            self.log(lane, statistics, coefficient)

    def show(self, lane: Lane, step: int, names: Sequence[str], grads: Sequence[Tensor], grad_scale: float) -> None:
        """Let the sinks look at the gradients themselves, now and then."""
        if lane.steps % self.log_every == 0:
            self.tell("gradients", step, lane.index, names, grads, grad_scale)

    def log(self, lane: Lane, statistics: GradientStatistics, coefficient: float) -> None:
        """Send the window that ends with this step."""
        # Before there is history the only limit is the number format's, which would stretch every picture by ten decades.
        limit = lane.limit() if lane.baseline.count else math.inf
        window = lane.meter.window(
            statistics,
            lane.baseline,
            optimizer=lane.index,
            limit=limit,
            coefficient=coefficient,
            lr_factor=lane.lr_factor,
            incidents=len(self.incidents),
            rates=lane.rates(),
        )
        self.tell("window", window)

    def notice(self, lane: Lane, step: int, verdict: Verdict) -> None:
        """Tell what asks for no remedy, now and then."""
        if step - lane.noticed.get(verdict.detector, -NOTICE_EVERY) >= NOTICE_EVERY:
            lane.noticed[verdict.detector] = step
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
            tried = f"tried {', '.join(i.remedies) or 'nothing'}"
            culprit = f", first in {i.culprit or 'the root module'}" if i.culprit is not None else ""
            reason = wording.reason(i.actions[0]) if i.actions else ""
            line = f"incident {i.number} at step {i.step}: {i.form}{culprit} ({reason}); {tried}: {wording.result(i)}"
            lines += [line, *(f"  {name}: {text}" for name, text in wording.findings(i))]
        return "\n".join(lines) or "no incident"

    def warn(self, key: str, message: str) -> None:
        """Warn once of each ``key``."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"GradGuard: {message}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Close the sinks and let go of them."""
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:
                self.warn(type(sink).__name__, f"{type(sink).__name__} could not be closed: {error!r}")
        self.sinks.clear()
