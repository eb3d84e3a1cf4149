"""The routes of the GradGuard tab, and the loader that the entry point names."""

from __future__ import annotations

import argparse
import json
import math
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard import errors
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from . import events, lowered, packing, story, telling, thinning, wire
from .reading import WINDOWS_KEPT, Log, Reader

PLUGIN_NAME = "gradguard"
COLUMNS_MOST = 2000

_STATIC = Path(__file__).parent / "static"

Stretch = tuple[float, float, int]
"""From, to, and the most columns."""
Answer = Callable[[Log, int, Stretch], bytes]


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
    /weights   the same, but for quick          binary: the weights' norms, and how far updates moved them
    /static/*                                   the page
    ========== ================================ ==========================================================
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        """Keep the data provider; nothing is read before it is asked for."""
        self._reader = Reader(context.data_provider)
        self._logdir: str = getattr(context, "logdir", None) or ""

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
        answers = {"/runs": self._runs, "/story": self._story, "/view": self._view, "/weights": self._weights}
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
        for run, tag, listed in self._reader.log(request.environ).tags:
            entry = found.setdefault(run, {"name": run, "optimizers": set(), "layers": 0, "time": 0.0})
            entry["optimizers"].add(tag.optimizer)
            entry["time"] = max(entry["time"], listed.max_wall_time or 0.0)
            if tag.kind == "layers":
                entry["layers"] = max(entry["layers"], len(wire.parse_layers(listed.plugin_content)[0]))
        runs = [{**entry, "optimizers": sorted(entry["optimizers"])} for _, entry in sorted(found.items())]
        return _respond_json(request, {"runs": runs})

    def _story(self, request: wrappers.Request) -> wrappers.Response:
        run = _argument(request, "run")
        log = self._reader.log(request.environ, run)
        optimizers = log.optimizers
        if not optimizers:
            return _refuse(request, 404, "no such run")
        loaded = {i: log.windows(i) for i in optimizers}
        axes = {i: one.axis for i, one in loaded.items()}
        records = events.incidents(log.events, axes)
        unusual = [one for i in optimizers for one in log.unusual(i)]
        return _respond_json(
            request,
            {
                "run": run,
                "verdict": story.of_run(
                    records, list(loaded.values()), unusual, events.last_heard(log.events, axes), self._place(run)
                ),
                "unusual": unusual,
                "incidents": records,
                "notices": events.notices(log.events),
                "optimizers": _named([_with_lowered(log, i, records) for i in optimizers]),
                "witnesses": telling.ROWS,
            },
        )

    def _place(self, run: str) -> str | None:
        """Return a run's directory, or None where TensorBoard reads it from elsewhere or it holds no journal."""
        place = Path(self._logdir) / run
        return str(place) if self._logdir and (place / "gradguard.jsonl").is_file() else None

    def _view(self, request: wrappers.Request) -> wrappers.Response:
        def answer(log: Log, optimizer: int, stretch: Stretch) -> bytes:
            sample = log.quick(optimizer) if _argument(request, "quick") else None
            loaded = log.layers(optimizer) if sample is None else sample
            return packing.view(thinning.view(loaded, *stretch), *stretch[:2], sampled=sample is not None)

        return self._stretch(request, answer)

    def _weights(self, request: wrappers.Request) -> wrappers.Response:
        def answer(log: Log, optimizer: int, stretch: Stretch) -> bytes:
            loaded = log.weights(optimizer)
            return packing.weights(*thinning.weights(loaded, *stretch), loaded.beginning, *stretch[:2])

        return self._stretch(request, answer)

    def _stretch(self, request: wrappers.Request, answer: Answer) -> wrappers.Response:
        """Answer with what lies between two places of one optimizer; where that is nothing, with all of it."""
        try:
            optimizer = int(_argument(request, "optimizer") or 0)
            start, end = float(_argument(request, "from") or 0), float(_argument(request, "to") or math.inf)
            columns = min(max(int(_argument(request, "columns") or 800), 1), COLUMNS_MOST)
        except ValueError:
            return _refuse(request, 400, "optimizer, from, to and columns are numbers")
        log = self._reader.log(request.environ, _argument(request, "run"))
        try:
            extent = log.extent(optimizer)
            start, end = max(start, extent["start"]), min(end, extent["end"])
            if not start < end:
                start, end = extent["start"], extent["end"]
            packed = answer(log, optimizer, (start, end, columns))
        except errors.NotFoundError as error:
            return _refuse(request, 404, str(error))
        return _respond(request, packed, "application/octet-stream")


def _with_lowered(log: Log, optimizer: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the extent of an optimizer, with the places at which its learning rate was lowered."""
    mine = [one for one in records if one["optimizer"] == optimizer]
    return {**log.extent(optimizer), "lowered": lowered.lowered(log.windows(optimizer), mine)}


def _named(extents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = telling.optimizer_names([one["layers"] for one in extents])
    return [{**one, "name": name} for one, name in zip(extents, names, strict=True)]


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
