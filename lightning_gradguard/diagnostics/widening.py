"""Windows that widen as a run grows, so that a log of any length stays small and opens at once."""

from __future__ import annotations

from collections import deque

from lightning_gradguard.diagnostics.timeline import merge
from lightning_gradguard.records import Window

LEAD = 20
"""Windows on both sides of the beginning of trouble that stay as they are."""


class Widening:
    """Merge neighbouring windows so that none covers more than a small part of the run so far; no peak is lost.

    After ``n`` windows at most ``parts * (1 + ln(n / parts)) + spare`` have come out: a part grows with the run, so
    each doubling of its length adds the same number. Around trouble nothing is merged, until ``spare`` windows were
    spent so.

    Args:
        parts: A window covers at most one more than this part of the windows so far; at least 1.
        spare: The most windows that stay unmerged around trouble.

    >>> widening = Widening(parts=100)
    """

    def __init__(self, parts: int, *, spare: int = 0) -> None:
        self._parts = parts
        self._spare = spare
        self._seen = 0
        self._dense = 0
        self._merged: Window | None = None
        self._count = 0
        # What has just been seen waits here, whole: it may prove to be what came before trouble.
        self._recent: deque[Window] = deque()

    def add(self, window: Window) -> list[Window]:
        """Take in one window; return those that are ready to be written, oldest first."""
        # A resumed run's ticks go on where they were, and its windows are wide at once.
        self._seen = max(self._seen + 1, window.tick + 1)
        if self._seen <= self._parts:
            return [window]
        if self._dense and self._spare:
            self._dense -= 1
            self._spare -= 1
            return [window]
        self._recent.append(window)
        return self._merge(self._recent.popleft()) if len(self._recent) > (LEAD if self._spare else 0) else []

    def trouble(self) -> list[Window]:
        """Stop merging for a while; return what waits, the last windows before the trouble as they were."""
        self._spare = max(self._spare - len(self._recent), 0)
        self._dense = LEAD
        return self.flush()

    def flush(self) -> list[Window]:
        """Return all that waits."""
        waiting = [self._merged] if self._merged is not None else []
        waiting += self._recent
        self._merged, self._count = None, 0
        self._recent.clear()
        return waiting

    def _merge(self, window: Window) -> list[Window]:
        self._merged = merge(self._merged, window) if self._merged is not None else window
        self._count += 1
        if self._count <= self._seen // self._parts:
            return []
        done, self._merged, self._count = self._merged, None, 0
        return [done]
