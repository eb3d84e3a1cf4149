"""The routes of the GradGuard tab, and the loader that the entry point names."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import mimetypes
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from . import series, story, telling, wire

PLUGIN_NAME = "gradguard"

WINDOWS_KEPT = 20_000
"""Windows kept of each tag: a million steps at 50 a window. Beyond that a loader keeps a random sample."""
BYTES_READ = 128 * 2**20
"""The most that is read of one tag: the fast loader refuses answers of 256 MiB and more."""
ENTRIES_CACHED = 12
COLUMNS_MOST = 2000
AT_ONCE_BYTES = 12 * 2**20
"""A run of no more than this is shown at once."""
QUICK_BYTES = 4 * 2**20
"""What is read of a larger one for a first picture, shown while the rest is read."""

_STATIC = Path(__file__).parent / "static"

Key = tuple[str, str, int, str]
Stamp = tuple[tuple[str, int, float], ...]


class GradGuardLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Ask TensorBoard, before it loads anything, to keep enough of our events; then make the plugin."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Raise the number of events kept, unless the user has chosen one.

        Zero keeps all: an incident must not fall to a random sample.
        """
        kept = getattr(flags, "samples_per_plugin", None)
        if isinstance(kept, dict):
            kept.setdefault(wire.LAYERS_PLUGIN, WINDOWS_KEPT)
            kept.setdefault(wire.INCIDENTS_PLUGIN, 0)

    def load(self, context: Any) -> GradGuardPlugin:
        """Make the plugin."""
        return GradGuardPlugin(context)


class GradGuardPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serve the page, and what it asks for.

    ========== ================================ ==========================================================
    route      arguments                        answer
    ========== ================================ ==========================================================
    /runs                                       JSON: the runs that have something to show
    /story     run                              JSON: verdict, incidents, extent and rollbacks
    /view      run, optimizer, from, to,        binary: a stretch thinned to the width of the screen
               columns, quick
    /static/*                                   the page
    ========== ================================ ==========================================================
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        """Keep the data provider; nothing is read before it is asked for."""
        self._provider = context.data_provider
        self._cache: OrderedDict[Key, tuple[Stamp, Any]] = OrderedDict()
        self._lock = threading.Lock()
        # Held by who decodes, so that one large run keeps nobody from the others.
        self._turns: dict[Key, threading.Lock] = {}

    def data_plugin_names(self) -> tuple[str, ...]:
        """Name whose summaries are read."""
        return (wire.LAYERS_PLUGIN, wire.INCIDENTS_PLUGIN)

    def is_active(self) -> bool:
        """Return False: TensorBoard then asks by :meth:`data_plugin_names` whether there is data."""
        return False

    def frontend_metadata(self) -> Any:
        """Name the tab and the module that draws it."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="GradGuard")

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the routes."""
        files = [path.name for path in sorted(_STATIC.iterdir()) if path.is_file()]
        answers = {"/runs": self._runs, "/story": self._story, "/view": self._view}
        answers |= {f"/static/{name}": self._static for name in files}
        return {route: wrappers.Request.application(answer) for route, answer in answers.items()}

    def _static(self, request: wrappers.Request) -> wrappers.Response:
        # The routes are one per file that exists, so the name needs no check against "..".
        path = _STATIC / Path(request.path).name
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        # A Windows registry may call .js text/plain, which browsers refuse as a module.
        kind = "application/javascript" if path.suffix == ".js" else kind
        return _respond(request, path.read_bytes(), kind)

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        found: dict[str, dict[str, Any]] = {}
        for run, tag, listed in self._list(request):
            entry = found.setdefault(run, {"name": run, "optimizers": set(), "layers": 0, "time": 0.0})
            entry["optimizers"].add(tag.optimizer)
            entry["time"] = max(entry["time"], listed.max_wall_time or 0.0)
            if tag.kind == "layers":
                entry["layers"] = max(entry["layers"], len(wire.parse_layers(listed.plugin_content)[0]))
        runs = [{**entry, "optimizers": sorted(entry["optimizers"])} for _, entry in sorted(found.items())]
        return _respond_json(request, {"runs": runs})

    def _story(self, request: wrappers.Request) -> wrappers.Response:
        run = _argument(request, "run")
        tags = [tag for name, tag, _ in self._list(request, run) if name == run]
        if not tags:
            return _refuse(request, 404, "no such run")
        optimizers = sorted({tag.optimizer for tag in tags})
        loaded = {i: self._windows(request, run, i) for i in optimizers}
        events = self._events(request, run)
        records = story.incidents(events, {i: one.axis for i, one in loaded.items()})
        ends = [(float(one.axis.last[-1]), int(one.table[-1, 0])) for one in loaded.values() if len(one.table)]
        restless = [since for one in loaded.values() if (since := one.restless_since) is not None]
        counts = {name: sum(one.total(name) for one in loaded.values()) for name in series.COUNTS}
        unusual = [one for i in optimizers for one in self._unusual(request, run, i, events)]
        said = story.verdict(records, max(ends, default=None), min(restless, default=None), counts)
        return _respond_json(
            request,
            {
                "run": run,
                "verdict": story.amend(said, unusual),
                "unusual": unusual,
                "incidents": records,
                "notices": story.notices(events),
                "optimizers": self._extents(request, run, optimizers),
            },
        )

    def _view(self, request: wrappers.Request) -> wrappers.Response:
        run = _argument(request, "run")
        try:
            optimizer = int(_argument(request, "optimizer") or 0)
            start, end = float(_argument(request, "from") or 0), float(_argument(request, "to") or math.inf)
            columns = min(max(int(_argument(request, "columns") or 800), 1), COLUMNS_MOST)
        except ValueError:
            return _refuse(request, 400, "optimizer, from, to and columns are numbers")
        try:
            loaded = self._quick(request, run, optimizer) if _argument(request, "quick") else None
            sampled = loaded is not None
            loaded = loaded or self._load(request, run, optimizer)
        except errors.NotFoundError as error:
            return _refuse(request, 404, str(error))
        extent = self._extent(request, run, optimizer)
        start, end = max(start, extent["start"]), min(end, extent["end"])
        if not start < end:
            start, end = extent["start"], extent["end"]
        packed = pack(series.view(loaded, start, end, columns), start, end, sampled=sampled)
        return _respond(request, packed, "application/octet-stream")

    def _unusual(
        self, request: wrappers.Request, run: str, optimizer: int, events: Sequence[story.Event]
    ) -> list[dict[str, Any]]:
        """Return the layers that have left their level for good, but for those that an incident tells of.

        Of a large run that has not been read yet nothing is said: its verdict must not wait for that.
        """
        if self._large(request, run, optimizer):
            return []
        loaded = self._load(request, run, optimizer)

        def find() -> list[dict[str, Any]]:
            return [{**dataclasses.asdict(one), "layer": loaded.names[one.layer]} for one in series.outliers(loaded)]

        found: list[dict[str, Any]] = self._cached(request, run, optimizer, "unusual", find)
        told = story.layers_told_of(events)
        return [{**one, "optimizer": optimizer} for one in found if one["layer"] not in told]

    def _list(self, request: wrappers.Request, run: str | None = None) -> list[tuple[str, wire.Tag, Any]]:
        """List our tags: run, tag, and what TensorBoard says of it."""
        listed = []
        for name in self.data_plugin_names():
            found = self._provider.list_tensors(
                plugin_util.context(request.environ),
                experiment_id=plugin_util.experiment_id(request.environ),
                plugin_name=name,
                run_tag_filter=provider.RunTagFilter(runs=[run]) if run is not None else None,
            )
            for at, tags in found.items():
                listed += [(at, tag, one) for text, one in tags.items() if (tag := wire.parse_tag(text))]
        return listed

    def _read(self, request: wrappers.Request, plugin_name: str, run: str, tag: str, most: int) -> Sequence[Any]:
        read = self._provider.read_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=plugin_name,
            downsample=most,
            run_tag_filter=provider.RunTagFilter(runs=[run], tags=[tag]),
        )
        data: Sequence[Any] = read.get(run, {}).get(tag, [])
        return data

    def _events(self, request: wrappers.Request, run: str) -> list[story.Event]:
        events: list[story.Event] = []
        for at, tag, _ in self._list(request, run):
            if at == run and tag.kind == "incidents":
                for datum in self._read(request, wire.INCIDENTS_PLUGIN, run, tag.name, 10**6):
                    event = story.parse_event(datum.step, datum.wall_time, tag.optimizer, datum.numpy)
                    events += [event] if event else []
        return sorted(events, key=lambda event: event.tick)

    def _tags(self, request: wrappers.Request, run: str, optimizer: int) -> dict[wire.Tag, Any]:
        mine = [(tag, one) for at, tag, one in self._list(request, run) if at == run]
        listed = {tag: one for tag, one in sorted(mine, key=lambda pair: pair[0].part) if tag.optimizer == optimizer}
        if not listed:
            raise errors.NotFoundError(f"no optimizer {optimizer} in this run")
        return listed

    def _windows(self, request: wrappers.Request, run: str, optimizer: int) -> series.Timeline:
        """Decode the windows: small, and all that the verdict needs, so it does not wait for the layers."""

        def decode() -> series.Timeline:
            tags = [tag.name for tag in self._tags(request, run, optimizer) if tag.kind == "windows"]
            read = [w for tag in tags for w in self._read(request, wire.LAYERS_PLUGIN, run, tag, WINDOWS_KEPT)]
            rows = [(w, row) for w in read if (row := wire.parse_window(w.numpy)) is not None]
            return series.lay_out(
                np.array([w.step for w, _ in rows], np.int64),
                np.array([w.wall_time for w, _ in rows], np.float64),
                np.array([row for _, row in rows], np.float64).reshape(-1, len(wire.COLUMNS)),
            )

        timeline: series.Timeline = self._cached(request, run, optimizer, "windows", decode)
        return timeline

    def _load(self, request: wrappers.Request, run: str, optimizer: int) -> series.Series:
        """Decode all of one optimizer of one run."""
        names = self._names(request, run, optimizer)
        windows = self._windows(request, run, optimizer)
        most = min(WINDOWS_KEPT, _affordable(names, BYTES_READ))
        loaded: series.Series = self._cached(
            request, run, optimizer, "layers", lambda: self._decode(request, run, optimizer, names, windows, most)
        )
        return loaded

    def _quick(self, request: wrappers.Request, run: str, optimizer: int) -> series.Series | None:
        """Decode a random sample of a large run that is not in the cache yet; None where there is no need."""
        if not self._large(request, run, optimizer):
            return None
        names = self._names(request, run, optimizer)
        windows = self._windows(request, run, optimizer)
        return self._decode(request, run, optimizer, names, windows, _affordable(names, QUICK_BYTES))

    def _large(self, request: wrappers.Request, run: str, optimizer: int) -> bool:
        """Tell whether a run takes long to read and has not been read yet."""
        names, windows = self._names(request, run, optimizer), self._windows(request, run, optimizer)
        with self._lock:
            known = (plugin_util.experiment_id(request.environ), run, optimizer, "layers") in self._cache
        return not known and len(windows.table) > _affordable(names, AT_ONCE_BYTES)

    def _decode(
        self,
        request: wrappers.Request,
        run: str,
        optimizer: int,
        names: tuple[str, ...],
        windows: series.Timeline,
        most: int,
    ) -> series.Series:
        parts = []
        for tag, mine in self._lists(request, run, optimizer).items():
            read = self._read(request, wire.LAYERS_PLUGIN, run, tag.name, most)
            read = [one for one in read if one.numpy.shape == (2, len(mine)) and one.numpy.dtype.kind == "f"]
            parts.append(
                (
                    np.array([one.step for one in read], np.int64),
                    np.array([one.wall_time for one in read], np.float64),
                    series.spread(
                        np.array([one.numpy for one in read], np.float16).reshape(len(read), 2, len(mine)), mine, names
                    ),
                )
            )
        if not parts:
            nothing = np.zeros((0, 2, len(names)), np.float16)
            return series.assemble(names, windows, np.zeros(0, np.int64), np.zeros(0), nothing)
        # Most runs have one list of layers, and its numbers may be 80 MB.
        joined = parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))
        return series.assemble(names, windows, *joined)

    def _cached(self, request: wrappers.Request, run: str, optimizer: int, kind: str, decode: Callable[[], Any]) -> Any:
        """Return what ``decode`` made, unless something was written since it last did."""
        listed = self._tags(request, run, optimizer)
        stamp = tuple(sorted((tag.name, one.max_step, one.max_wall_time) for tag, one in listed.items()))
        key = (plugin_util.experiment_id(request.environ), run, optimizer, kind)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        # One request decodes while the others of a page just opened wait for it, instead of all doing the same.
        with turn:
            with self._lock:
                known = self._cache.get(key)
            made = known[1] if known is not None and known[0] == stamp else decode()
            with self._lock:
                self._cache[key] = stamp, made
                self._cache.move_to_end(key)
                while len(self._cache) > ENTRIES_CACHED:
                    self._cache.popitem(last=False)
        return made

    def _lists(self, request: wrappers.Request, run: str, optimizer: int) -> dict[wire.Tag, tuple[str, ...]]:
        """Return the lists of layers that the run has had, one a tag."""
        listed = self._tags(request, run, optimizer).items()
        return {tag: wire.parse_layers(one.plugin_content)[0] for tag, one in listed if tag.kind == "layers"}

    def _names(self, request: wrappers.Request, run: str, optimizer: int) -> tuple[str, ...]:
        lists = self._lists(request, run, optimizer).values()
        return tuple(dict.fromkeys(name for names in lists for name in names))

    def _extents(self, request: wrappers.Request, run: str, optimizers: Sequence[int]) -> list[dict[str, Any]]:
        extents = [self._extent(request, run, i) for i in optimizers]
        names = telling.optimizer_names([one["layers"] for one in extents])
        return [{**one, "name": name} for one, name in zip(extents, names, strict=True)]

    def _extent(self, request: wrappers.Request, run: str, optimizer: int) -> dict[str, Any]:
        axis = self._windows(request, run, optimizer).axis
        if not len(axis.last):
            axis = self._load(request, run, optimizer).layer_axis
        start, end = (float(axis.first[0]), float(axis.last[-1])) if len(axis.last) else (0.0, 1.0)
        return {
            "optimizer": optimizer,
            "start": start,
            "end": end,
            "windows": len(axis.last),
            "layers": list(self._names(request, run, optimizer)),
            "segments": axis.segments,
        }


def pack(
    view: series.View,
    start: float,
    end: float,
    *,
    sampled: bool = False,
    unusual: Sequence[dict[str, Any]] = (),
) -> bytes:
    """Pack a view for the page.

    First the length of the header, then the header as JSON padded to eight bytes, then the arrays in its order. JSON
    alone would be three times the size for a thousand layers, and has no inf.
    """
    arrays = {
        **{f"windows.{name}": column.astype("<f8") for name, column in view.windows.items()},
        **{f"layers.{name}": column.astype("<f8") for name, column in view.layers.items()},
        # From wide to narrow, so that each array starts where its type may.
        "codes": view.codes.astype("<i2"),
        "ratios": view.ratios.astype("<i2"),
        "nonfinite": view.nonfinite,
    }
    header = {
        "start": start,
        "end": end,
        "sampled": sampled,
        "codes_per_doubling": series.CODES,
        "arrays": [{"name": name, "type": array.dtype.str[1:], "shape": array.shape} for name, array in arrays.items()],
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def _affordable(names: Sequence[str], size: int) -> int:
    """Count of layer events, of four bytes a layer, that fit in ``size`` bytes; at least a hundred."""
    return max(100, size // (4 * max(len(names), 1)))


def _argument(request: wrappers.Request, name: str) -> str:
    value: str = request.args.get(name, "")
    return value


def _respond(request: wrappers.Request, content: bytes, kind: str) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, content, kind)
    return response


def _respond_json(request: wrappers.Request, content: Any) -> wrappers.Response:
    # The browser's parser knows no NaN; what came from the guard has none, and what did not must not break the page.
    return _respond(request, json.dumps(_finite(content), allow_nan=False).encode(), "application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(request: wrappers.Request, code: int, why: str) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, json.dumps({"error": why}), "application/json", code=code)
    return response
