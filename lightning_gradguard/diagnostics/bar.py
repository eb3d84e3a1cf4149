"""A word in the progress bar that says how the run goes."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.records import Incident, Window

BAR_KEY = "gg"


class BarWord(Sink):
    """Add ``gg: ok`` to what a Lightning progress bar shows, through the bar's own ``get_metrics``: nothing is logged.

    While there is trouble the word says so; afterwards it says how many steps were skipped and clipped.
    """

    def __init__(self) -> None:
        self.word = "ok"
        self._done: dict[int, tuple[int, int]] = {}
        self._open: dict[int, int] = {}
        self._bar: Any = None

    def beside(self, bar: Any) -> BarWord:
        """Show the word beside this bar until :meth:`close`."""
        self.close()
        self._bar, own = bar, bar.get_metrics
        # On this bar alone, where a subclass or another bar of the same class stays as it is.
        bar.get_metrics = lambda *args, **kwargs: {**own(*args, **kwargs), BAR_KEY: self.word}
        return self

    def window(self, window: Window) -> None:
        """Count what was done."""
        self._done[window.optimizer] = window.skipped, window.clipped
        self._say()

    def incident(self, incident: Incident, event: Event) -> None:
        """Tell of trouble as long as it lasts."""
        skipped, clipped = self._done.get(incident.optimizer, (0, 0))
        before = self._open.setdefault(incident.number, skipped)
        held = sum(any(o.skips for o in action.outcomes) for action in incident.actions)
        # The window under way has not been told of yet.
        self._done[incident.optimizer] = max(skipped, before + held), clipped
        if incident.closed is not None:
            del self._open[incident.number]
        self._say()

    def _say(self) -> None:
        skipped, clipped = (sum(counts) for counts in zip(*self._done.values(), strict=True)) if self._done else (0, 0)
        done = [f"{skipped:,} skipped"] * (skipped > 0) + [f"{clipped:,} clipped"] * (clipped > 0)
        told = ", ".join(done) or "ok"
        self.word = f"{wording.count(len(self._open), 'incident')} open, {told}" if self._open else told

    def close(self) -> None:
        """Give the bar back as it was."""
        bar, self._bar = self._bar, None
        if bar is not None:
            vars(bar).pop("get_metrics", None)
