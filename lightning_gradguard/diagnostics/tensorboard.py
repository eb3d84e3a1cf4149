"""Everything GradGuard shows in TensorBoard.

Scalars, a margin chart, incidents as text, a heatmap, and events for its tab. One idea in more than 200 lines: one
writer, whose errors and whose end concern all of them.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch import Tensor

from lightning_gradguard import checks
from lightning_gradguard.diagnostics import tags
from lightning_gradguard.diagnostics.histograms import by_layer, count, fields
from lightning_gradguard.diagnostics.markdown import incident_markdown
from lightning_gradguard.diagnostics.milestones import is_milestone
from lightning_gradguard.diagnostics.picture import draw, encode_png
from lightning_gradguard.diagnostics.scalars import scalars
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.tab import TabEvents
from lightning_gradguard.diagnostics.timeline import Timeline
from lightning_gradguard.diagnostics.widening import Widening
from lightning_gradguard.records import Incident, Window

HISTORY = 20
HEATMAP_COLUMNS = 240
POINTS = 150
"""A point covers at most this part of the run so far.

900 for a million steps, since TensorBoard shows 1,000 drawn at random.
"""

_laid_out: weakref.WeakSet[Any] = weakref.WeakSet()


class TensorBoardSink(Sink):
    """Write to a ``torch.utils.tensorboard.SummaryWriter``, such as ``TensorBoardLogger.experiment``; on rank 0 only.

    The writer stays its owner's: :meth:`close` flushes it and does not close it.

    Args:
        writer: Where to write.
        optimizers: Count of optimizers; their index becomes part of the tags where there is more than one.
        layout: Whether to lay out TensorBoard's *Custom Scalars* page; once per writer.
        heatmap: Whether to draw the heatmap when an incident closes and at the end.
        histograms: Whether to write a histogram of log10 of the absolute gradients of each layer, once in ``log_every``
            steps.

    Raises:
        RuntimeError: On writing, when the writer has no file (Lightning's dummy on ranks above 0).
    """

    def __init__(
        self,
        writer: Any,
        *,
        optimizers: int = 1,
        layout: bool = True,
        heatmap: bool = True,
        histograms: bool = False,
    ) -> None:
        optimizers = checks.whole("optimizers", optimizers, least=1)
        self._writer = writer
        self._optimizers = optimizers
        self._layout = layout
        self._heatmap = heatmap
        self._histograms = histograms
        self._timelines: dict[int, Timeline] = {}
        self._drawn: dict[int, int] = {}
        self._points: dict[int, Widening] = {}
        self._tab = TabEvents(self._add, self._index)
        self._closed_incidents: deque[Incident] = deque(maxlen=HISTORY)
        self._unwritten: dict[int, Incident] = {}
        self._rest_until = 0.0

    def window(self, window: Window) -> None:
        """Write the scalars at the window's step and the layers' statistics at its tick.

        Of a long run, several as one.
        """
        self._lay_out()
        self._write_points(self._points.setdefault(window.optimizer, Widening(POINTS)).add(window))
        self._tab.window(window)
        if self._heatmap:
            self._timelines.setdefault(window.optimizer, Timeline(HEATMAP_COLUMNS)).add(window)

    def gradients(
        self, step: int, optimizer: int, names: Sequence[str], grads: Sequence[Tensor], grad_scale: float
    ) -> None:
        """Write one histogram for each layer; elements that are zero or not finite are left out."""
        if not self._histograms:
            return
        values = []
        for layer, counts in by_layer(names, count(grads, grad_scale)).items():
            if (found := fields(counts)) is not None:
                tag = tags.tag(layer, self._index(optimizer), group=tags.HISTOGRAM_GROUP)
                values.append(Summary.Value(tag=tag, histo=HistogramProto(**found)))
        self._add(values, step)

    def incident(self, incident: Incident, event: Event) -> None:
        """Write an incident for the tab, and as text when it opens and closes."""
        if event == "opened" and incident.optimizer in self._points:
            self._write_points(self._points[incident.optimizer].trouble())
            self._tab.trouble(incident.optimizer)
        self._unwritten.pop(incident.number, None)
        if is_milestone(incident, event):
            self._tab.entry(event, incident.step if event == "opened" else _last_step(incident), incident=incident)
        else:
            self._unwritten[incident.number] = incident
        if event == "acted":
            return
        text = incident_markdown(incident, reversed(self._closed_incidents))
        self._writer.add_text(tags.INCIDENT_TEXT, text, _last_step(incident))
        if event == "closed":
            self._closed_incidents.append(incident)
            if time.monotonic() >= self._rest_until:
                self.draw_heatmap(incident.optimizer)

    def notice(self, step: int, message: str) -> None:
        """Write one sentence that asks for no remedy."""
        self._tab.entry("notice", step, message=message)

    def epoch(self) -> None:
        """Draw the heatmaps, unless drawing would cost too much of the run."""
        if time.monotonic() >= self._rest_until:
            for optimizer in self._timelines:
                self.draw_heatmap(optimizer)

    def close(self) -> None:
        """Draw the heatmaps a last time and flush the writer; let go of its file if that cannot be written."""
        try:
            for points in self._points.values():
                self._write_points(points.flush())
            self._tab.flush()
            for incident in self._unwritten.values():
                self._tab.entry("acted", _last_step(incident), incident=incident)
            self._unwritten.clear()
            self._tab.ended()
            for optimizer in self._timelines:
                self.draw_heatmap(optimizer)
        finally:
            self._flush()

    def _flush(self) -> None:
        try:
            self._writer.flush()
        except OSError:
            # A writer whose thread has died raises again when its owner closes it, and a run that has been trained to
            # its end would fail then. Without a file it closes in peace, and opens a new one for whoever writes again.
            if hasattr(self._writer, "file_writer"):
                self._writer.file_writer = self._writer.all_writers = None
            raise

    def draw_heatmap(self, optimizer: int = 0) -> None:
        """Write the layer x time heatmap as an image, unless nothing was added since the last one."""
        columns = self._timelines[optimizer].columns if optimizer in self._timelines else []
        if not columns or not columns[-1].layers or self._drawn.get(optimizer) == columns[-1].tick:
            return
        began = time.monotonic()
        pixels = draw(self._timelines[optimizer])
        image = Summary.Image(
            height=pixels.shape[0], width=pixels.shape[1], colorspace=3, encoded_image_string=encode_png(pixels)
        )
        tag = tags.tag(tags.HEATMAP, self._index(optimizer))
        self._add([Summary.Value(tag=tag, image=image)], columns[-1].step)
        self._drawn[optimizer] = columns[-1].tick
        # A picture of 200 layers takes some 0.1 s: in a run that is sick all the time it may cost 1 % of it, not more.
        self._rest_until = time.monotonic() + 100 * (time.monotonic() - began)

    def _index(self, optimizer: int) -> int | None:
        return optimizer if self._optimizers > 1 or optimizer > 0 else None

    def _write_points(self, windows: Iterable[Window]) -> None:
        for window in windows:
            values = scalars(window, self._index(window.optimizer))
            self._add([Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()], window.step)

    def _add(self, values: list[Any], step: int) -> None:
        # One event for many values: add_scalar costs an event, a lock and a checksum each.
        getter = getattr(self._writer, "_get_file_writer", None)
        file_writer = getter() if getter else getattr(self._writer, "file_writer", None)
        if file_writer is None:
            raise RuntimeError("the TensorBoard writer has no file to write to; it is closed, or this is not rank 0")
        file_writer.add_summary(Summary(value=values), step)

    def _lay_out(self) -> None:
        if not self._layout or self._writer in _laid_out:
            return
        self._layout = False
        with contextlib.suppress(TypeError):  # a writer of the user's own may not take weak references
            _laid_out.add(self._writer)
        self._writer.add_custom_scalars({"GradGuard": _charts(self._optimizers)})


def _charts(optimizers: int) -> dict[str, list[Any]]:
    charts: dict[str, list[Any]] = {}
    for optimizer in range(optimizers):
        index = optimizer if optimizers > 1 else None
        suffix = f" (optimizer {optimizer})" if optimizers > 1 else ""
        charts[f"log10 gradient norm in its band, typical to limit{suffix}"] = ["Margin", tags.band(index)]
        # Multiline tags are regular expressions.
        lines = [f"^{tags.tag(name, index)}$" for name in (tags.NORM_BEFORE, tags.NORM_AFTER, tags.LIMIT)]
        charts[f"log10 gradient norm before and after clipping{suffix}"] = ["Multiline", lines]
    return charts


def _last_step(incident: Incident) -> int:
    if incident.closed is not None:
        return incident.closed
    return incident.actions[-1].step if incident.actions else incident.step
