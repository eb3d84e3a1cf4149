"""Alerts by the logger that a run uses: W&B's and Trackio's reach people's phones and mail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.webhook import message
from lightning_gradguard.records import Incident

Alert = Callable[..., object]


class AlertSink(Sink):
    """Raise an alert when an incident opens, and one when it closes.

    Args:
        alert: Called as ``alert(title=..., text=..., level=...)``, with the level
            ``"ERROR"`` or ``"INFO"``; W&B's ``run.alert`` fits.
    """

    def __init__(self, alert: Alert) -> None:
        self._alert = alert

    def incident(self, incident: Incident, event: Event) -> None:
        """Raise an alert."""
        if event != "acted":
            told = message(incident, event)
            level = "INFO" if event == "closed" and incident.stopped is None else "ERROR"
            self._alert(title=told.title, text=told.text, level=level)


def alert_of(logger: Any) -> Alert | None:
    """Return how a logger of a Trainer raises alerts, or None."""
    name = f"{type(logger).__module__}.{type(logger).__name__}".lower()
    if "wandb" in name:
        found = getattr(logger.experiment, "alert", None)
        return found if callable(found) else None
    if "trackio" in name:
        return _of_trackio(sys.modules.get("trackio"))
    return None


def _of_trackio(trackio: Any) -> Alert | None:
    """Return Trackio's alert, which is the module's and takes a level of its own kind."""
    raised, levels = getattr(trackio, "alert", None), getattr(trackio, "AlertLevel", None)
    if not callable(raised):
        return None

    def alert(*, title: str, text: str, level: str) -> object:
        return raised(title=title, text=text, level=getattr(levels, level, level))

    return alert
