"""What the GradGuard tab of TensorBoard reads of windows and incidents, in the wire format.

Of a long run, several windows as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lightning_gradguard.diagnostics import tags, wire
from lightning_gradguard.diagnostics.widening import Widening
from lightning_gradguard.records import Incident, Window

PARTS_ON_BOARD = 1000
"""A window covers at most this part of the run so far: it is never wider than a pixel."""
SPARE_ON_BOARD = 2000
"""Windows that stay as they are around incidents."""
WEIGHT_PARTS, WEIGHT_SPARE = 250, 250
"""The same for the weights' statistics, which move slowly."""


class TabEvents:
    """Write the tab's events.

    Args:
        add: Writes summary values at a counter that never goes back.
        index: Gives the optimizer's index as tags have it: None where there is only one.
    """

    def __init__(self, add: Callable[[list[Any], int], None], index: Callable[[int], int | None]) -> None:
        self._add, self._index = add, index
        self._windows: dict[int, Widening] = {}
        self._weights: dict[int, Widening] = {}
        self._layer_tags: dict[tuple[str, int], tuple[tuple[str, ...], str]] = {}
        self._announced: set[str] = set()
        self._last_entry = self._last_step = 0

    def window(self, window: Window) -> None:
        """Take in one window; write what is ready."""
        self._last_step = window.step
        windows = self._windows.setdefault(window.optimizer, Widening(PARTS_ON_BOARD, spare=SPARE_ON_BOARD))
        self._write_windows(windows.add(window))
        if np.isfinite(window.layer_updates).any():
            weights = self._weights.setdefault(window.optimizer, Widening(WEIGHT_PARTS, spare=WEIGHT_SPARE))
            self._write_weights(weights.add(window))

    def trouble(self, optimizer: int) -> None:
        """Write the windows that wait to be merged, and merge none for a while."""
        if optimizer in self._windows:
            self._write_windows(self._windows[optimizer].trouble())
        if optimizer in self._weights:
            self._write_weights(self._weights[optimizer].trouble())

    def flush(self) -> None:
        """Write all that waits."""
        for widening in self._windows.values():
            self._write_windows(widening.flush())
        for widening in self._weights.values():
            self._write_weights(widening.flush())

    def ended(self) -> None:
        """Write that the run has ended, if anything was written of it."""
        if self._announced:
            self.entry("ended", self._last_step)

    def entry(self, event: str, step: int, *, incident: Incident | None = None, message: str | None = None) -> None:
        """Write an entry of the incident log."""
        # A clock, not a count from zero: a resumed run continues the same tag, and must not look like the past.
        self._last_entry = max(self._last_entry + 1, time.time_ns() // 1_000_000)
        tensor = wire.encode_incident(event, step, incident=incident, message=message)
        tag = tags.INCIDENT_EVENTS
        self._add([wire.value(tag, tensor, self._once(tag, wire.incidents_metadata))], self._last_entry)

    def _write_windows(self, windows: Iterable[Window]) -> None:
        for window in windows:
            tag = tags.tag(tags.WINDOWS_TAG, self._index(window.optimizer))
            values = [wire.value(tag, wire.encode_window(window), self._once(tag, wire.windows_metadata, window))]
            if window.layers:
                values.append(self._of_layers(tags.LAYERS, window, wire.encode_layers(window)))
            self._add(values, window.tick)

    def _write_weights(self, windows: Iterable[Window]) -> None:
        for window in windows:
            self._add([self._of_layers(tags.WEIGHTS, window, wire.encode_weights(window))], window.tick)

    def _of_layers(self, name: str, window: Window, tensor: Any) -> Any:
        """Return a value of the tag for this list of layers.

        Metadata is written once a tag, so a new list needs a new tag.
        """
        layers, tag = self._layer_tags.get((name, window.optimizer), (None, ""))
        if layers != window.layers:
            base = tags.tag(name, self._index(window.optimizer))
            used = sum(known == base or known.startswith(f"{base}_") for known in self._announced)
            tag = f"{base}_{used + 1}" if used else base
            self._layer_tags[name, window.optimizer] = (window.layers, tag)
        return wire.value(tag, tensor, self._once(tag, wire.layers_metadata, window))

    def _once(self, tag: str, metadata: Any, *arguments: Any) -> Any:
        if tag in self._announced:
            return None
        self._announced.add(tag)
        return metadata(*arguments)
