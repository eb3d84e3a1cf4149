"""How a trial ends."""

from __future__ import annotations

from enum import Enum


class Ending(str, Enum):
    """How a trial ends; records hold the values."""

    NOT_YET = ""
    """It goes on."""
    KEPT = "kept"
    """The losses are the better for the treatment."""
    TAKEN_BACK = "taken back"
    """They are not."""
    CALM = "calm"
    """No loss is known, and no alarm came."""
    TOO_FAST = "too fast"
    """It goes on, at a rate that should be lowered once more."""
