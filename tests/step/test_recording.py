"""What the recorder is told of a step."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.records import Incident, Window
from lightning_gradguard.step.recording import stop
from tests.step.loop import Loop


class Told(Sink):
    """Keep what is told."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.events: list[tuple[int, Any]] = []

    def window(self, window: Window) -> None:
        self.windows.append(window)

    def incident(self, incident: Incident, event: Any) -> None:
        self.events.append((incident.number, event))


def test_windows_follow_one_another_and_are_sent_when_they_are_full() -> None:
    told = Told()
    Loop(45, sinks=[told], log_every=10)
    ends = [w.step for w in told.windows]
    assert [w.first_step for w in told.windows] == [0, *(end + 1 for end in ends[:-1])]
    assert all(w.step - w.first_step < 10 for w in told.windows) and len(ends) < 30


def test_a_window_ends_where_an_incident_begins() -> None:
    told = Told()
    loop = Loop(44, sinks=[told], log_every=10)
    loop.step(math.nan)
    *_, calm, trouble = told.windows
    assert (calm.step, trouble.first_step) == (43, 44)
    assert math.isfinite(calm.norm_peak) and not math.isfinite(trouble.norm_peak)
    assert told.events == [(1, "opened")]


def test_a_run_that_ends_here_closes_its_incident_once() -> None:
    told = Told()
    loop = Loop(44, sinks=[told])
    stop(loop.run, loop.track, 44)
    assert told.events == []
    loop.step(math.nan)
    for _ in range(2):
        stop(loop.run, loop.track, 45)
    assert told.events == [(1, "opened"), (1, "closed")]
    assert loop.guard.incidents[0].stopped == 45 and loop.guard.incidents[0].helped is False
