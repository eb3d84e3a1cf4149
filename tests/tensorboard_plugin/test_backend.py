"""The plugin through TensorBoard's own application and both of its loaders."""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

from lightning_gradguard_tensorboard.plugin import GradGuardLoader, GradGuardPlugin

ROOT = Path(__file__).parents[2]


def read_view(content: bytes) -> dict[str, Any]:
    """Unpack as the page does."""
    length = struct.unpack("<I", content[:4])[0]
    view: dict[str, Any] = json.loads(content[4 : 4 + length])
    offset = 4 + length
    for array in view.pop("arrays"):
        count = int(np.prod(array["shape"]))
        view[array["name"]] = np.frombuffer(content, array["type"], count, offset).reshape(array["shape"])
        offset += view[array["name"]].nbytes
    return view


class Local:
    """The plugin on the slow loader's provider, in this process."""

    def __init__(self, logdir: Path) -> None:
        flags = argparse.Namespace(samples_per_plugin={})
        GradGuardLoader().fix_flags(flags)
        multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance=flags.samples_per_plugin)
        multiplexer.AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
        self.plugin = GradGuardLoader().load(base_plugin.TBContext(data_provider=provider))
        self.apps = self.plugin.get_plugin_apps()

    def get(self, route: str, **query: Any) -> Any:
        return Client(self.apps[route]).get(route, query_string=query)

    def json(self, route: str, **query: Any) -> Any:
        return json.loads(self.get(route, **query).data)

    def view(self, **query: Any) -> dict[str, Any]:
        return read_view(self.get("/view", **query).data)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    names = synthetic.transformer(9)
    synthetic.write_run(folder / "guarded", names, sick=True)
    synthetic.write_run(folder / "healthy", names[:12], windows=80)
    synthetic.write_run(folder / "unguarded", names, diverge=True)
    synthetic.write_hostile(folder / "hostile")
    writer = synthetic.Writer(folder / "other")
    writer.scalar("loss", 1, 2.0)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def local(logs: Path) -> Local:
    return Local(logs)


def test_importing_the_plugin_imports_neither_torch_nor_the_guard() -> None:
    """An import error here would take TensorBoard down, and torch would make it slow to start."""
    code = (
        "import sys, lightning_gradguard_tensorboard.plugin\n"
        "bad = {'torch', 'lightning', 'pytorch_lightning', 'lightning_gradguard', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_only_runs_with_something_to_show(local: Local) -> None:
    runs = {run["name"]: run for run in local.json("/runs")["runs"]}
    assert set(runs) == {"guarded", "healthy", "hostile", "unguarded"}
    assert runs["healthy"]["layers"] == 12 and runs["healthy"]["optimizers"] == [0]


def test_story_of_a_healthy_run(local: Local) -> None:
    told = local.json("/story", run="healthy")
    assert told["verdict"]["level"] == "good" and told["incidents"] == []
    assert told["optimizers"][0]["end"] == 800


def test_story_of_a_sick_run(local: Local) -> None:
    told = local.json("/story", run="guarded")
    assert told["verdict"]["level"] == "good", "long over"
    assert [one["number"] for one in told["incidents"]] == [4, 3, 2, 1]
    assert all(one["helped"] for one in told["incidents"])
    (extent,) = told["optimizers"]
    assert len(extent["segments"]) == 2, "the rollback is a new stretch"
    # A rollback loses nothing: all 400 windows lie side by side.
    assert extent["end"] == 4000 and extent["windows"] == 400
    # The incident after the rollback lies in the new stretch, the ones before in the old.
    assert told["incidents"][0]["place"] == told["incidents"][0]["step"] + 200
    assert told["incidents"][1]["place"] == told["incidents"][1]["step"]


def test_unguarded_divergence_is_not_called_healthy(local: Local) -> None:
    assert local.json("/story", run="unguarded")["verdict"]["level"] == "bad"


def test_view_and_zoom(local: Local) -> None:
    whole = local.view(run="guarded", columns=100)
    assert whole["codes"].shape == (57, 100)
    assert whole["nonfinite"].max() == 1
    near = local.view(run="guarded", **{"from": 1800, "to": 1960}, columns=100)
    assert (near["start"], near["end"]) == (1800, 1960)
    assert near["codes"].shape == (57, 16), "near enough, a column is a window"
    bad = near["nonfinite"].any(axis=0)
    assert near["layers.first"][bad].tolist() == [1880]
    assert near["windows.first"].tolist() == list(range(1790, 1970, 10)), "lines go on to the edges"
    at = np.flatnonzero(near["windows.first"] == 1880)
    assert np.isnan(near["windows.peak"][at]).all() and near["windows.coefficient"][at].tolist() == [0]


def test_view_outside_the_run_shows_all_of_it(local: Local) -> None:
    shown = local.view(run="healthy", **{"from": 10**9, "to": 10**9 + 1})
    assert (shown["start"], shown["end"]) == (0, 800)


@pytest.mark.parametrize("query", [{"from": "x"}, {"columns": "many"}, {"optimizer": "-"}])
def test_refuses_what_is_no_number(local: Local, query: dict[str, str]) -> None:
    assert local.get("/view", run="healthy", **query).status_code == 400


@pytest.mark.parametrize("route", ["/story", "/view"])
def test_unknown_run(local: Local, route: str) -> None:
    assert local.get(route, run="nobody").status_code == 404


def test_hostile_run_is_served_as_data(local: Local) -> None:
    told = local.json("/story", run="hostile")
    assert told["optimizers"][0]["layers"][:2] == synthetic.HOSTILE[:2]
    assert [one["number"] for one in told["incidents"]] == [1]
    response = local.get("/story", run="hostile")
    assert response.content_type.startswith("application/json")
    assert local.view(run="hostile")["codes"].shape[0] == len(synthetic.HOSTILE) + 1


@pytest.mark.parametrize(
    "first", ["gradguard/", "gradguard/optimizer_0/"], ids=["alone at first", "as the guard writes"]
)
def test_further_optimizers(tmp_path: Path, first: str) -> None:
    writer = synthetic.Writer(tmp_path / "gan")
    for tick in range(5):
        for prefix in (first, "gradguard/optimizer_1/"):
            writer.layers(tick, ["a", "b"], np.ones(2), np.zeros(2), prefix)
            writer.window(tick, [tick, tick, 1, 1, 1, 1, 2, 1, 1], prefix)
    writer.close()
    local = Local(tmp_path)
    assert local.json("/runs")["runs"][0]["optimizers"] == [0, 1]
    for optimizer in (0, 1):
        view = local.view(run="gan", optimizer=optimizer)
        assert view["codes"].shape == (2, 5) and len(view["windows.peak"]) == 5
    assert local.get("/view", run="gan", optimizer=2).status_code == 404


def test_layers_that_join_in_the_middle_of_a_run_are_shown(tmp_path: Path) -> None:
    writer = synthetic.Writer(tmp_path / "unfrozen")
    for tick in range(10):
        names = ["head"] if tick < 5 else ["body", "head"]
        part = "" if tick < 5 else "_2"
        writer.window(tick, [tick, tick, 1, 1, 1, 1, 2, 1, 1])
        writer.layers(tick, names, np.ones(len(names)), np.zeros(len(names)), part=part)
    writer.close()
    local = Local(tmp_path)
    assert local.json("/story", run="unfrozen")["optimizers"][0]["layers"] == ["head", "body"]
    codes = local.view(run="unfrozen")["codes"]
    assert codes.tolist() == [[0] * 10, [-32768] * 5 + [0] * 5]


def test_new_windows_are_seen(tmp_path: Path) -> None:
    """The cache must not outlive what it was made from."""
    synthetic.write_run(tmp_path / "run", ["a", "b", "c"], windows=20)
    folder = str(tmp_path)
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"gradguard_layers": 0})
    multiplexer.AddRunsFromDirectory(folder)
    multiplexer.Reload()
    made = GradGuardPlugin(
        base_plugin.TBContext(data_provider=data_provider.MultiplexerDataProvider(multiplexer, folder))
    )
    client = Client(made.get_plugin_apps()["/view"])
    assert read_view(client.get("/view?run=run").data)["codes"].shape == (3, 20)
    # Files are read in the order of their names: those of one second are told apart by a counter, whose 10 comes before 9.
    time.sleep(1.1)
    writer = synthetic.Writer(tmp_path / "run")
    writer.now += 1000
    writer.layers(20, ["a", "b", "c"], np.ones(3), np.zeros(3))
    writer.window(20, [209, 200, 1, 1, 1, 1, 2, 1, 1])
    writer.close()
    multiplexer.Reload()
    assert read_view(client.get("/view?run=run").data)["codes"].shape == (3, 21)


def test_the_user_s_own_sampling_is_respected() -> None:
    flags = argparse.Namespace(samples_per_plugin={"gradguard_layers": 7})
    GradGuardLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"gradguard_layers": 7, "gradguard_incidents": 0}
    GradGuardLoader().fix_flags(argparse.Namespace())


def test_static_files_are_served_as_modules(local: Local) -> None:
    page = local.plugin.frontend_metadata().es_module_path
    response = local.get(page)
    assert response.status_code == 200 and "javascript" in response.content_type
    for path in (ROOT / "lightning_gradguard_tensorboard" / "static").iterdir():
        text = path.read_text()
        assert "innerHTML" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


@pytest.mark.parametrize("fast", [True, False])
def test_both_loaders_tell_the_same(logs: Path, local: Local, serve: Any, fast: bool) -> None:
    """A real TensorBoard, found by its entry point, gives what the plugin in this process gives."""
    if fast:
        pytest.importorskip("tensorboard_data_server", reason="the fast loader is not installed")
    with serve(logs, fast=fast) as address:

        def get(route: str, **query: str) -> bytes:
            url = f"{address}/data/plugin/gradguard{route}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=20) as response:
                return bytes(response.read())

        for _ in range(100):
            if len(json.loads(get("/runs"))["runs"]) == 4 and json.loads(get("/story", run="unguarded")) == local.json(
                "/story", run="unguarded"
            ):
                break
            time.sleep(0.2)
        for run in ("guarded", "healthy", "hostile", "unguarded"):
            assert json.loads(get("/story", run=run)) == local.json("/story", run=run)
            here, there = local.view(run=run, columns="300"), read_view(get("/view", run=run, columns="300"))
            assert here.keys() == there.keys()
            for name, value in here.items():
                np.testing.assert_array_equal(value, there[name], err_msg=f"{run}: {name}")


def test_a_long_run_of_many_layers_opens_at_once(tmp_path: Path) -> None:
    """A hundred thousand steps of a thousand layers; a million are to open within three seconds."""
    synthetic.write_large(tmp_path / "run", windows=2000)
    local = Local(tmp_path)
    begin = time.process_time()  # what others do on a busy machine is not counted
    local.json("/story", run="run")
    assert local.view(run="run", columns=800, quick=1)["sampled"] is False, "two thousand windows need no sample"
    shown = local.view(run="run", columns=800)
    assert time.process_time() - begin < 1.5
    assert shown["codes"].shape == (1000, 800)
    assert shown["ratios"].max() > 8 * 128, "the single spike of one layer in one window"
    assert np.argwhere(shown["nonfinite"])[:, 0].tolist() == [7], "the single NaN"


def test_a_larger_run_shows_a_sample_first(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    for name in ("AT_ONCE_BYTES", "QUICK_BYTES"):
        monkeypatch.setattr(f"lightning_gradguard_tensorboard.reading.{name}", 4 * 74 * 120)
    fresh = Local(logs)
    first = fresh.view(run="guarded", columns=400, quick=1)
    assert first["sampled"] is True and 100 <= first["codes"].shape[1] < 400
    whole = fresh.view(run="guarded", columns=400)
    assert whole["sampled"] is False and whole["codes"].shape[1] == 400
    assert fresh.view(run="guarded", columns=400, quick=1)["sampled"] is False, "what is decoded is not sampled again"


def test_a_request_lists_the_tags_once_and_answers_in_bytes_of_a_screen(
    monkeypatch: pytest.MonkeyPatch, logs: Path
) -> None:
    """Listing costs tens of milliseconds where a thousand names travel with it."""
    fresh, asked = Local(logs), []
    provider = fresh.plugin._reader.data
    lists = provider.list_tensors
    monkeypatch.setattr(
        provider, "list_tensors", lambda *args, **kwargs: asked.append(kwargs) or lists(*args, **kwargs)
    )
    for route, query in (("/story", {}), ("/view", {"columns": 100}), ("/view", {"columns": 100})):
        asked.clear()
        content = fresh.get(route, run="guarded", **query).data
        assert [one["plugin_name"] for one in asked] == ["gradguard_layers", "gradguard_incidents"]
    layers, columns = 57, 100
    assert len(content) < 5 * layers * columns + 8 * 30 * columns + 4000


def test_weights_of_a_run_that_measured_them(tmp_path: Path) -> None:
    writer = synthetic.Writer(tmp_path / "weighed")
    names = ["a", "b"]
    for tick in range(8):
        writer.window(tick, [tick * 10 + 9, tick * 10, 2, 2, 2, 2, 9, 1, 1, 0, 0, 0])
        writer.layers(tick, names, np.ones(2), np.zeros(2))
        if tick % 2:
            writer.weights(tick, names, np.array([4.0, 0.0]), np.array([2.0**-10, np.nan]))
    writer.close()
    local = Local(tmp_path)
    assert local.json("/story", run="weighed")["optimizers"][0]["weighed"] is True
    seen = read_view(local.get("/weights", run="weighed", columns=100).data)
    assert seen["layers.first"].tolist() == [10, 20, 40, 60] and seen["layers.last"].tolist() == [20, 40, 60, 80]
    assert (seen["norms"][0] == 2 * 128).all() and (seen["norms"][1] == -60 * 128).all()
    assert (seen["updates"][0] == -10 * 128).all() and (seen["updates"][1] == -32768).all()
    assert seen["beginning"].tolist() == [2 * 128, -32768]


def test_runs_of_older_versions_have_no_weights(local: Local) -> None:
    assert local.json("/story", run="guarded")["optimizers"][0]["weighed"] is False
    assert read_view(local.get("/weights", run="guarded", columns=100).data)["norms"].shape == (57, 0)
    assert local.get("/weights", run="nobody").status_code == 404
