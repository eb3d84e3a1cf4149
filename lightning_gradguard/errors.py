"""What the guard raises in mid-run."""

from __future__ import annotations


class GuardError(RuntimeError):
    """A detector or remedy failed; the message names it."""


class TrainingDiverged(RuntimeError):
    """The budget of remedies is spent; the message tells what was tried."""
