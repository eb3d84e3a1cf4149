"""A function of the user's own that is told of incidents."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.records import Incident


class Listener(Sink):
    """Call a function as ``function(incident, event)`` when an incident opens, goes on and closes.

    Args:
        function: The function; what it returns is not looked at.
    """

    def __init__(self, function: Callable[[Incident, Event], object]) -> None:
        self._function = function

    def incident(self, incident: Incident, event: Event) -> None:
        """Call it."""
        self._function(incident, event)
