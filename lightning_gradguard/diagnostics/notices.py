"""Which notices are due."""

from __future__ import annotations

from typing import Any

NOTICE_EVERY = 500
"""Steps for which a detector that was told of is not told of again."""


class Notices:
    """Remember when each detector was last told of, since what asks for no remedy is told only now and then."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def due(self, detector: str, step: int) -> bool:
        """Return whether a detector's notice is to be told at this step, and remember that it is."""
        if step - self._last.get(detector, -NOTICE_EVERY) < NOTICE_EVERY:
            return False
        self._last[detector] = step
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the step of each detector's last notice."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._last = {str(k): int(v) for k, v in state.items()}
