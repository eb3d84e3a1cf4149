"""When the next snapshot is due."""

from __future__ import annotations

PATIENT_INTERVALS = 3
"""Intervals after which a state is copied though the loss is worse than it was."""
FIRST_INTERVAL = 10
"""Steps between the first snapshots; the gap then doubles with the age of the run."""


class Schedule:
    """Let snapshots be due at steps 0, 10, 20, 40, 80 and so on, until the gap reaches ``every``.

    Attributes:
        due: Step at which the next one is due.
        taken: Step of the last one.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.due = self.taken = 0

    def took(self, step: int) -> None:
        """Note that one was taken."""
        self.due, self.taken = step + min(max(step, FIRST_INTERVAL), self.every), step

    def has_come(self, step: int, *, soon: bool) -> bool:
        """Return whether the next one is due; ``soon`` ten steps after the last one."""
        return step >= self.due or (soon and step >= self.taken + FIRST_INTERVAL)

    def overdue(self, step: int) -> bool:
        """Return whether the next one has been due for several intervals."""
        return step >= self.due + PATIENT_INTERVALS * self.every
