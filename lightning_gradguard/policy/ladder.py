"""The ladder: for each cause the treatments that are tried, one after the other."""

from __future__ import annotations

from lightning_gradguard.attribution.cause import Cause

Treatment = tuple[str, ...]

START: dict[Cause, tuple[Treatment, ...]] = {
    Cause.LAYER: (("reinitialize",), ("rollback", "initialize", "backoff"), ("rollback", "backoff")),
    Cause.START: (("rollback", "initialize", "backoff"), ("rollback", "backoff")),
    Cause.RATE: (("rollback", "backoff"), ("rollback", "initialize", "backoff")),
    Cause.UNKNOWN: (("rollback", "backoff"), ("rollback", "initialize", "backoff")),
    Cause.OPTIMIZER: (("rollback",), ("rollback", "backoff")),
}
"""For a run that is fresh from its initialisation, with the copy of its first step at hand."""

UNDER_WAY: dict[Cause, tuple[Treatment, ...]] = {
    Cause.LAYER: (("reinitialize",), ("rollback",), ("rollback", "backoff")),
    Cause.START: (("rollback", "backoff"),),
    Cause.RATE: (("rollback", "backoff"),),
    Cause.UNKNOWN: (("rollback",), ("rollback", "backoff")),
    Cause.OPTIMIZER: (("rollback",), ("rollback", "backoff")),
}
"""For a run that has learned something, or that was not fresh when it began: nothing is drawn anew."""


def treatments(cause: Cause, *, start: bool) -> tuple[Treatment, ...]:
    """Return the treatments of a cause in order; none for what only first aid, or nobody here, can help."""
    return (START if start else UNDER_WAY).get(cause, ())
