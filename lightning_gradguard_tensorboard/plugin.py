"""The routes of the GradGuard tab, and the loader that the entry point names."""

from __future__ import annotations

import argparse
import json
import math
import mimetypes
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from . import series, story, wire

PLUGIN_NAME = "gradguard"

WINDOWS_KEPT = 20_000
"""Windows kept of each tag: a million steps at 50 a window. Beyond that a loader keeps a random sample."""
BYTES_READ = 128 * 2**20
"""The most that is read of one tag: the fast loader refuses answers of 256 MiB and more."""
RUNS_CACHED = 4
COLUMNS_MOST = 2000

_STATIC = Path(__file__).parent / "static"

WsgiApp = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]
Key = tuple[str, str, int]
Stamp = tuple[tuple[str, int, float], ...]


class GradGuardLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Ask TensorBoard, before it loads anything, to keep enough of our events; then make the plugin."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Raise the number of events kept, unless the user has chosen one. Zero keeps all: an incident must not be sampled."""
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
    /view      run, optimizer, from, to, columns binary: a stretch thinned to the width of the screen
    /static/*                                   the page
    ========== ================================ ==========================================================
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        """Keep the data provider; nothing is read before it is asked for."""
        self._provider = context.data_provider
        self._cache: OrderedDict[Key, tuple[Stamp, series.Series]] = OrderedDict()
        self._lock = threading.Lock()

    def data_plugin_names(self) -> tuple[str, ...]:
        """Name whose summaries are read."""
        return (wire.LAYERS_PLUGIN, wire.INCIDENTS_PLUGIN)

    def is_active(self) -> bool:
        """Return False: TensorBoard then asks by :meth:`data_plugin_names` whether there is data."""
        return False

    def frontend_metadata(self) -> Any:
        """Name the tab and the module that draws it."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="GradGuard")

    def get_plugin_apps(self) -> dict[str, WsgiApp]:
        """Return the routes."""
        return {
            "/runs": self._runs,
            "/story": self._story,
            "/view": self._view,
            **{f"/static/{path.name}": self._static for path in sorted(_STATIC.iterdir()) if path.is_file()},
        }

    @wrappers.Request.application
    def _static(self, request: wrappers.Request) -> wrappers.Response:
        # The routes are one per file that exists, so the name needs no check against "..".
        path = _STATIC / Path(request.path).name
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        # A Windows registry may call .js text/plain, which browsers refuse as a module.
        kind = "application/javascript" if path.suffix == ".js" else kind
        return _respond(request, path.read_bytes(), kind)

    @wrappers.Request.application
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

    @wrappers.Request.application
    def _story(self, request: wrappers.Request) -> wrappers.Response:
        run = _argument(request, "run")
        tags = [tag for name, tag, _ in self._list(request, run) if name == run]
        if not tags:
            return _refuse(request, 404, "no such run")
        loaded = {i: self._load(request, run, i) for i in sorted({tag.optimizer for tag in tags})}
        axes = {i: one.axis for i, one in loaded.items()}
        events = self._events(request, run)
        records = story.incidents(events, axes)
        ends = [(axis.last[-1], int(one.table[-1, 0])) for one in loaded.values() if len((axis := one.axis).last)]
        last_place, last_step = max(ends) if ends else (0.0, None)
        return _respond_json(
            request,
            {
                "run": run,
                "verdict": story.verdict(records, last_step, float(last_place) - 1),
                "incidents": records,
                "notices": story.notices(events),
                "optimizers": [_extent(i, one) for i, one in loaded.items()],
            },
        )

    @wrappers.Request.application
    def _view(self, request: wrappers.Request) -> wrappers.Response:
        run = _argument(request, "run")
        try:
            optimizer = int(_argument(request, "optimizer") or 0)
            start, end = float(_argument(request, "from") or 0), float(_argument(request, "to") or math.inf)
            columns = min(max(int(_argument(request, "columns") or 800), 1), COLUMNS_MOST)
        except ValueError:
            return _refuse(request, 400, "optimizer, from, to and columns are numbers")
        loaded = self._load(request, run, optimizer)
        extent = _extent(optimizer, loaded)
        start, end = max(start, extent["start"]), min(end, extent["end"])
        if not start < end:
            start, end = extent["start"], extent["end"]
        return _respond(request, pack(series.view(loaded, start, end, columns), start, end), "application/octet-stream")

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
                for datum in self._read(request, wire.INCIDENTS_PLUGIN, run, _tag(tag), 10**6):
                    event = story.parse_event(datum.step, datum.wall_time, tag.optimizer, datum.numpy.item())
                    events += [event] if event else []
        return sorted(events, key=lambda event: event.tick)

    def _load(self, request: wrappers.Request, run: str, optimizer: int) -> series.Series:
        """Decode one optimizer of one run, or take it from the cache if nothing was written since."""
        listed = {
            tag.kind: one for at, tag, one in self._list(request, run) if at == run and tag.optimizer == optimizer
        }
        if not listed:
            raise errors.NotFoundError(f"no optimizer {optimizer} in this run")
        stamp = tuple(sorted((kind, one.max_step, one.max_wall_time) for kind, one in listed.items()))
        key = (plugin_util.experiment_id(request.environ), run, optimizer)
        # One request decodes while the others of a page that has just opened wait for it, instead of all doing the same.
        with self._lock:
            known = self._cache.get(key)
            if known and known[0] == stamp:
                self._cache.move_to_end(key)
                return known[1]
            names = wire.parse_layers(listed["layers"].plugin_content)[0] if "layers" in listed else ()
            loaded = self._decode(request, run, optimizer, names)
            self._cache[key] = stamp, loaded
            while len(self._cache) > RUNS_CACHED:
                self._cache.popitem(last=False)
            return loaded

    def _decode(self, request: wrappers.Request, run: str, optimizer: int, names: tuple[str, ...]) -> series.Series:
        most = max(100, min(WINDOWS_KEPT, BYTES_READ // (4 * max(len(names), 1))))
        windows = self._read(request, wire.LAYERS_PLUGIN, run, _tag(wire.Tag(optimizer, "windows")), WINDOWS_KEPT)
        windows = [w for w in windows if w.numpy.shape == (len(wire.COLUMNS),) and np.isfinite(w.numpy[:2]).all()]
        layers = self._read(request, wire.LAYERS_PLUGIN, run, _tag(wire.Tag(optimizer, "layers")), most)
        layers = [one for one in layers if one.numpy.shape == (2, len(names))]
        return series.assemble(
            names,
            np.array([w.step for w in windows], np.int64),
            np.array([w.wall_time for w in windows], np.float64),
            np.array([w.numpy for w in windows], np.float64).reshape(-1, len(wire.COLUMNS)),
            np.array([one.step for one in layers], np.int64),
            np.array([one.wall_time for one in layers], np.float64),
            np.array([one.numpy for one in layers], np.float16).reshape(-1, 2, len(names)),
        )


def pack(view: series.View, start: float, end: float) -> bytes:
    """Pack a view: length of the header, header as JSON padded to eight bytes, then the arrays in the order it lists them.

    JSON alone would be three times the size for a thousand layers, and has no inf.
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
        "codes_per_doubling": series.CODES,
        "arrays": [{"name": name, "type": array.dtype.str[1:], "shape": array.shape} for name, array in arrays.items()],
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def _extent(optimizer: int, loaded: series.Series) -> dict[str, Any]:
    axis = loaded.axis if len(loaded.axis.last) else loaded.layer_axis
    bounds = (float(axis.first[0]), float(axis.last[-1])) if len(axis.last) else (0.0, 1.0)
    return {
        "optimizer": optimizer,
        "start": bounds[0],
        "end": bounds[1],
        "windows": len(axis.last),
        "layers": list(loaded.names),
        "segments": axis.segments,
    }


def _tag(tag: wire.Tag) -> str:
    return f"gradguard/optimizer_{tag.optimizer}/{tag.kind}" if tag.optimizer else f"gradguard/{tag.kind}"


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
