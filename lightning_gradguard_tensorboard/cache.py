"""What was decoded once is not decoded again until something more is written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

ENTRIES = 16

Key = tuple[str, str, int, str]
"""Experiment, run, optimizer, and what it is."""
Stamp = tuple[tuple[str, int, float], ...]
"""Of each tag its name, its last step and its last wall time."""


class Cache:
    """Remember what was decoded last."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, tuple[Stamp, Any]] = OrderedDict()
        self._lock = threading.Lock()
        # Held by who decodes, so that one large run keeps nobody from the others.
        self._turns: dict[Key, threading.Lock] = {}

    def knows(self, key: Key) -> bool:
        """Tell whether something was decoded, at whatever time."""
        with self._lock:
            return key in self._entries

    def cached(self, key: Key, stamp: Stamp, decode: Callable[[], Any]) -> Any:
        """Return what ``decode`` made, unless something was written since it last did."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        # One request decodes while the others of a page just opened wait for it, instead of all doing the same.
        with turn:
            with self._lock:
                known = self._entries.get(key)
            made = known[1] if known is not None and known[0] == stamp else decode()
            with self._lock:
                self._entries[key] = stamp, made
                self._entries.move_to_end(key)
                while len(self._entries) > ENTRIES:
                    self._entries.popitem(last=False)
        return made
