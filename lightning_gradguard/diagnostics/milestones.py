"""Which events of a long incident are worth a line on disk."""

from __future__ import annotations

from lightning_gradguard.diagnostics.sink import Event
from lightning_gradguard.records import Incident


def is_milestone(incident: Incident, event: Event) -> bool:
    """Return whether to write this event: all openings and closings, the first ten alarms, then each doubling.

    Each line repeats the incident so far, so a line for each of a million bad steps would fill the disk.
    """
    alarms = incident.alarms
    return event != "acted" or alarms <= 10 or alarms & (alarms - 1) == 0
