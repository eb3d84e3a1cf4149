"""How often layers are examined because of a single odd loss."""

from __future__ import annotations

from dataclasses import dataclass

GAP, WIDEST = 10, 320
"""Least and most steps between two examinations for a single odd loss; one costs as much as a few clips."""


@dataclass(slots=True)
class ExponentialInterval:
    """Space out the examinations that odd losses ask for: one at once, and where they are common at growing intervals.

    Args:
        last: Step of the last time.
        gap: Steps that must lie between two times.
    """

    last: int = -(10**9)
    gap: int = GAP

    def due(self, step: int) -> bool:
        """Return whether to examine at this step, and remember that it is done."""
        since = step - self.last
        if since < self.gap:
            return False
        self.last, self.gap = step, min(2 * self.gap, WIDEST) if since < 2 * self.gap else GAP
        return True
