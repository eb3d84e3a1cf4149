"""Sending messages from a thread of their own: not too often, and again where it failed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

WAITING = 100
"""Messages that wait at most; what comes beyond is dropped, since nobody reads a hundred at a time."""


class Refused(Exception):
    """A message that would be refused again; the text says why, and never where it was sent to."""


class Delivery(Generic[T]):
    """Deliver messages in the background, several as one where they come too fast.

    Args:
        send: Sends a few messages; raises :class:`Refused` where trying again is of no use, and anything else where it
            may help.
        failed: Told once, in the background, why messages are not delivered.
        every: Seconds between two deliveries.
        tries: How often one is tried.
        pause: Seconds before it is tried again, doubled each time.
    """

    def __init__(
        self,
        send: Callable[[list[T]], None],
        failed: Callable[[str], None],
        *,
        every: float,
        tries: int,
        pause: float = 1.0,
    ) -> None:
        self._send, self._failed = send, failed
        self._every, self._tries, self._pause = every, tries, pause
        self._begin()

    def _begin(self) -> None:
        self._waiting: queue.Queue[T] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._told = False

    def put(self, message: T) -> None:
        """Queue a message for delivery, without waiting for anything."""
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._work, name="gradguard-delivery", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            return

    def close(self, seconds: float) -> None:
        """Deliver what is waiting at once, and wait so many seconds for it at most."""
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(seconds)

    def _work(self) -> None:
        last = -self._every
        while True:
            try:
                first = self._waiting.get(timeout=0.05)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            # The process is about to end, so what waits is sent at once.
            self._closing.wait(max(0.0, last + self._every - time.monotonic()))
            self._deliver([first, *self._rest()])
            last = time.monotonic()

    def _rest(self) -> list[T]:
        found: list[T] = []
        while not self._waiting.empty():
            found.append(self._waiting.get_nowait())
        return found

    def _deliver(self, messages: list[T]) -> None:
        for attempt in range(self._tries):
            try:
                self._send(messages)
                return
            except Refused as error:
                return self._tell(str(error))
            except Exception as error:
                # Not its text, in which an address with a secret may stand.
                why = type(error).__name__
            if attempt + 1 < self._tries:
                self._closing.wait(self._pause * 2.0**attempt)
        self._tell(why)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._failed(why)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: threads stay where they are."""
        kept = ("_send", "_failed", "_every", "_tries", "_pause")
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it back."""
        vars(self).update(state)
        self._begin()
