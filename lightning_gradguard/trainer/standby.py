"""A guard that the environment asked for stands by: it gives way to one that the user has passed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning_gradguard.trainer.refusal import misconfigured

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_WORDS = {True: ("1", "true", "on", "yes"), False: ("0", "false", "off", "no", "")}
"""What the environment may say."""


def asked_for() -> bool:
    """Return whether the environment asks for a guard.

    Raises:
        ValueError: What it says means neither yes nor no.
    """
    said = os.environ.get("LIGHTNING_GRADGUARD", "").strip()
    meaning = next((means for means, words in _WORDS.items() if said.lower() in words), None)
    if meaning is None:
        known = ", ".join(word for words in _WORDS.values() for word in words if word)
        raise ValueError(f"the environment variable LIGHTNING_GRADGUARD must be one of {known} or empty, got {said!r}")
    return meaning


def on_standby(guard: Any) -> Any:
    """Return a guard that stands by from now on."""
    guard.standby.on = True
    return guard


class Standby:
    """Know whether a guard stands by, and its key, which Lightning asks for at every hook.

    Args:
        key: The guard's key in a checkpoint.
        key_on_standby: Another one, since a Trainer refuses two callbacks of one key.

    Attributes:
        on: Whether it does.
    """

    def __init__(self, key: str, key_on_standby: str) -> None:
        self.on = False
        self._keys = key, key_on_standby

    @property
    def key(self) -> str:
        """The guard's key in a checkpoint."""
        return self._keys[self.on]

    def gives_way(self, trainer: Trainer, guard: Any, kind: type) -> bool:
        """Leave the Trainer where there are other guards of this kind; where there are none, stand by no more.

        Raises:
            MisconfigurationException: There is another guard that does not stand by either.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others: list[Any] = [callback for callback in callbacks if isinstance(callback, kind) and callback is not guard]
        if self.on and others:
            # A new list: Lightning is going through the old one.
            trainer.callbacks = [c for c in callbacks if c is not guard]  # type: ignore[attr-defined]
            return True
        self.on = False
        if any(not other.standby.on for other in others):
            raise misconfigured(trainer, "Two GradGuard callbacks in one Trainer would remedy each other's work.")
        return False
