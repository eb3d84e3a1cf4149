"""What TensorBoard has read of a run, decoded: :class:`Reader` outlives the requests, :class:`Log` serves one.

Listing tags costs tens of milliseconds in a run of a thousand layers, whose names travel with it: a request lists once.
Longer than 200 lines, since it is one chain: tags, events, windows, layers, weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tensorboard import errors, plugin_util
from tensorboard.data import provider

from . import series, story, weights, wire
from .cache import Cache, Key
from .codes import Floats, Halves, Integers, spread
from .events import Event, layers_told_of

WINDOWS_KEPT = 20_000
"""Windows kept of each tag: a million steps at 50 a window. Beyond that a loader keeps a random sample."""
BYTES_READ = 128 * 2**20
"""The most that is read of one tag: the fast loader refuses answers of 256 MiB and more."""
AT_ONCE_BYTES = 32 * 2**20
"""A run of no more than this is shown at once: a first picture of it would cost about as much as all of it."""
QUICK_BYTES = 4 * 2**20
"""What is read of a larger one for a first picture, shown while the rest is read."""

Listed = tuple[str, wire.Tag, Any]


class Reader:
    """Give each request its view of the data.

    Args:
        data: TensorBoard's data provider.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.cache = data, Cache()

    def log(self, environ: Any, run: str | None = None) -> Log:
        """Return what one request sees of one run, or of all."""
        return Log(self, plugin_util.context(environ), plugin_util.experiment_id(environ), run)


class Log:
    """One run, or all, as one request sees it.

    Args:
        reader: What remembers.
        context: TensorBoard's, of the request.
        experiment: Its id.
        run: The run; None for all, of which only :attr:`tags` can be asked.
    """

    def __init__(self, reader: Reader, context: Any, experiment: str, run: str | None) -> None:
        self._reader, self._context, self._experiment, self._run = reader, context, experiment, run

    @cached_property
    def tags(self) -> list[Listed]:
        """Our tags: run, tag, and what TensorBoard says of it."""
        listed = []
        for plugin in (wire.LAYERS_PLUGIN, wire.INCIDENTS_PLUGIN):
            found = self._reader.data.list_tensors(
                self._context,
                experiment_id=self._experiment,
                plugin_name=plugin,
                run_tag_filter=None if self._run is None else provider.RunTagFilter(runs=[self._run]),
            )
            for at, tags in found.items():
                listed += [(at, tag, one) for text, one in tags.items() if (tag := wire.parse_tag(text))]
        return listed if self._run is None else [one for one in listed if one[0] == self._run]

    @property
    def optimizers(self) -> list[int]:
        """Indices of the optimizers that have written something."""
        return sorted({tag.optimizer for _, tag, _ in self.tags})

    @cached_property
    def events(self) -> list[Event]:
        """The incident events, in the order of their ticks."""
        found: list[Event] = []
        for _, tag, _ in self.tags:
            if tag.kind == "incidents":
                for datum in self._read(wire.INCIDENTS_PLUGIN, tag.name, 10**6):
                    event = story.parse_event(datum.step, datum.wall_time, tag.optimizer, datum.numpy)
                    found += [event] if event else []
        return sorted(found, key=lambda event: event.tick)

    def names(self, optimizer: int) -> tuple[str, ...]:
        """Return all layers that an optimizer has had, in forward order."""
        lists = self._lists(optimizer, "layers").values()
        return tuple(dict.fromkeys(name for names in lists for name in names))

    def windows(self, optimizer: int) -> series.Timeline:
        """Decode the windows: small, and all that the verdict needs, so it does not wait for the layers."""

        def decode() -> series.Timeline:
            tags = [tag.name for tag in self._tags(optimizer) if tag.kind == "windows"]
            read = [w for tag in tags for w in self._read(wire.LAYERS_PLUGIN, tag, WINDOWS_KEPT)]
            rows = [(w, row) for w in read if (row := wire.parse_window(w.numpy)) is not None]
            return series.lay_out(
                np.array([w.step for w, _ in rows], np.int64),
                np.array([w.wall_time for w, _ in rows], np.float64),
                np.array([row for _, row in rows], np.float64).reshape(-1, len(wire.COLUMNS)),
            )

        timeline: series.Timeline = self._cached(optimizer, "windows", decode)
        return timeline

    def layers(self, optimizer: int) -> series.Series:
        """Decode all of one optimizer."""
        most = min(WINDOWS_KEPT, _affordable(self.names(optimizer), BYTES_READ))
        loaded: series.Series = self._cached(optimizer, "layers", lambda: self._decode(optimizer, most))
        return loaded

    def quick(self, optimizer: int) -> series.Series | None:
        """Decode a random sample of a large run that is not in the cache yet; None where there is no need."""
        if not self._large(optimizer):
            return None
        return self._decode(optimizer, _affordable(self.names(optimizer), QUICK_BYTES))

    def weights(self, optimizer: int) -> weights.Weights:
        """Decode the weights' norms and how far updates moved them; runs of older versions have none."""

        def decode() -> weights.Weights:
            names = self.names(optimizer)
            most = min(WINDOWS_KEPT, _affordable(names, BYTES_READ))
            ticks, _, halves = self._joined(optimizer, "weights", names, most)
            return weights.weigh(names, self.windows(optimizer), ticks, halves)

        loaded: weights.Weights = self._cached(optimizer, "weights", decode)
        return loaded

    def unusual(self, optimizer: int) -> list[dict[str, Any]]:
        """Return the layers that have left their level for good, but for those that an incident tells of.

        Of a large run that has not been read yet nothing is said: its verdict must not wait for that.
        """
        if self._large(optimizer):
            return []
        loaded = self.layers(optimizer)
        told = layers_told_of(self.events)
        found = [{**dataclasses.asdict(one), "layer": loaded.names[one.layer]} for one in loaded.outliers]
        return [{**one, "optimizer": optimizer} for one in found if one["layer"] not in told]

    def extent(self, optimizer: int) -> dict[str, Any]:
        """Return where the axis of an optimizer begins and ends, and what is on it."""
        axis = self.windows(optimizer).axis
        if not len(axis.last):
            axis = self.layers(optimizer).layer_axis
        start, end = (float(axis.first[0]), float(axis.last[-1])) if len(axis.last) else (0.0, 1.0)
        return {
            "optimizer": optimizer,
            "start": start,
            "end": end,
            "windows": len(axis.last),
            "layers": list(self.names(optimizer)),
            "weighed": bool(self._lists(optimizer, "weights")),
            "segments": axis.segments,
        }

    def _tags(self, optimizer: int) -> dict[wire.Tag, Any]:
        mine = sorted(((tag, one) for _, tag, one in self.tags), key=lambda pair: pair[0].part)
        listed = {tag: one for tag, one in mine if tag.optimizer == optimizer}
        if not listed:
            raise errors.NotFoundError(f"no optimizer {optimizer} in this run")
        return listed

    def _lists(self, optimizer: int, kind: str) -> dict[wire.Tag, tuple[str, ...]]:
        """Return the lists of layers that the run has had, one a tag."""
        listed = self._tags(optimizer).items()
        return {tag: wire.parse_layers(one.plugin_content)[0] for tag, one in listed if tag.kind == kind}

    def _key(self, optimizer: int, kind: str) -> Key:
        return self._experiment, self._run or "", optimizer, kind

    def _cached(self, optimizer: int, kind: str, decode: Callable[[], Any]) -> Any:
        listed = self._tags(optimizer)
        stamp = tuple(sorted((tag.name, one.max_step, one.max_wall_time) for tag, one in listed.items()))
        return self._reader.cache.cached(self._key(optimizer, kind), stamp, decode)

    def _large(self, optimizer: int) -> bool:
        """Tell whether a run takes long to read and has not been read yet."""
        if self._reader.cache.knows(self._key(optimizer, "layers")):
            return False
        return len(self.windows(optimizer).table) > _affordable(self.names(optimizer), AT_ONCE_BYTES)

    def _decode(self, optimizer: int, most: int) -> series.Series:
        names = self.names(optimizer)
        ticks, times, halves = self._joined(optimizer, "layers", names, most)
        return series.assemble(names, self.windows(optimizer), ticks, times, halves)

    def _joined(self, optimizer: int, kind: str, names: tuple[str, ...], most: int) -> tuple[Integers, Floats, Halves]:
        """Return ticks, wall times and payloads of all tags of a kind, on one list of layers."""
        parts = [(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 2, len(names)), np.float16))]
        for tag, mine in self._lists(optimizer, kind).items():
            read = self._read(wire.LAYERS_PLUGIN, tag.name, most)
            read = [one for one in read if one.numpy.shape == (2, len(mine)) and one.numpy.dtype.kind == "f"]
            payloads = np.array([one.numpy for one in read], np.float16).reshape(len(read), 2, len(mine))
            ticks = np.array([one.step for one in read], np.int64)
            times = np.array([one.wall_time for one in read], np.float64)
            absent = np.nan if kind == "weights" else 0.0
            parts.append((ticks, times, spread(payloads, mine, names, absent=absent)))
        # Most runs have one list of layers, and its numbers may be 80 MB.
        if len(parts) == 2:
            return parts[1]
        ticks, times, halves = (np.concatenate(column) for column in zip(*parts, strict=True))
        return ticks, times, halves

    def _read(self, plugin: str, tag: str, most: int) -> Sequence[Any]:
        assert self._run is not None
        read = self._reader.data.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=plugin,
            downsample=most,
            run_tag_filter=provider.RunTagFilter(runs=[self._run], tags=[tag]),
        )
        data: Sequence[Any] = read.get(self._run, {}).get(tag, [])
        return data


def _affordable(names: Sequence[str], size: int) -> int:
    """Count of layer events, of four bytes a layer, that fit in ``size`` bytes; at least a hundred."""
    return max(100, size // (4 * max(len(names), 1)))
