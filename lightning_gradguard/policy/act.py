"""What a remedy can do: the words in which the ladder asks for remedies, whatever these are called."""

from __future__ import annotations

from enum import Enum


class Act(str, Enum):
    """One thing that may be done about an explosion; its value is what records call the default remedy for it."""

    __str__ = str.__str__

    CLIP = "clip"
    """Scale the gradients of this step down."""
    SKIP = "skip"
    """Make no update at this step."""
    ROLLBACK = "rollback"
    """Go back to a copy of weights and optimizer state."""
    REINITIALIZE = "reinitialize"
    """Repair the layers at fault."""
    INITIALIZE = "initialize"
    """Draw a fresh network anew."""
    BACKOFF = "backoff"
    """Lower the learning rate."""
    CLEAR = "clear"
    """Clear gradients that were stepped by, before the next ones are added to them."""
    TUNE = "tune"
    """Bring a number of the optimizer to one with which an update can go right."""


FIRST_AID = frozenset({Act.CLIP, Act.SKIP})
"""Acts that concern one step only."""
ON_TRIAL = frozenset(Act) - FIRST_AID
"""Acts that last, and that are kept or taken back by what becomes of the losses."""
EVERY = frozenset(Act)
"""All that the ladder chooses among; a remedy that does none of it accompanies the treatments."""
