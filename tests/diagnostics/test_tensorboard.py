import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard.diagnostics import TensorBoardSink
from lightning_gradguard_tensorboard.colours import special
from tests.diagnostics.examples import HOSTILE, incident, window


def read(directory):
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return events


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        yield writer


def test_scalars_and_layers_come_back(tmp_path, writer):
    sink = TensorBoardSink(writer)
    for tick in range(3):
        sink.window(window(tick, norm_peak=math.nan if tick == 1 else 100.0))
    sink.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("gradguard/1_log10_norm_peak")] == [
        (24, 2.0),
        (49, 38.5),
        (74, 2.0),
    ]
    assert [e.step for e in events.Tensors("gradguard/layers")] == [0, 1, 2]
    assert [e.step for e in events.Tensors("gradguard/windows")] == [0, 1, 2]
    assert make_ndarray(events.Tensors("gradguard/layers")[2].tensor_proto).shape == (2, 3)
    content = events.PluginTagToContent("gradguard_layers")
    assert json.loads(content["gradguard/layers"])["layers"] == ["conv1", "conv2", "fc"]
    assert set(content) == {"gradguard/layers", "gradguard/windows"}


def test_an_incident_is_told_as_text_and_as_json(tmp_path, writer):
    sink = TensorBoardSink(writer)
    case = incident()
    sink.incident(case, "opened")
    sink.incident(dataclasses.replace(case, alarms=2), "acted")
    sink.incident(dataclasses.replace(case, alarms=2, closed=52, helped=True), "closed")
    sink.incident(incident(2, 90), "opened")
    sink.notice(95, "gradients vanish")
    sink.close()
    events = read(tmp_path)
    entries = events.Tensors("gradguard/incidents")
    told = [json.loads(e.tensor_proto.string_val[0]) for e in entries]
    assert [t["event"] for t in told] == ["opened", "acted", "closed", "opened", "notice", "ended"]
    assert [t["step"] for t in told] == [40, 40, 52, 90, 95, 0] and told[-2]["message"] == "gradients vanish"
    assert all(a.step < b.step for a, b in itertools.pairwise(entries))
    texts = events.Tensors("gradguard/incident_log/text_summary")
    assert [t.step for t in texts] == [40, 52, 90]
    closed, second = (t.tensor_proto.string_val[0].decode() for t in texts[1:])
    assert "calm again after 12 steps, helped" in closed and "first in **conv2**" in closed
    assert "forward gain 57 x" in closed and "skipped the step" in closed
    assert "Earlier incidents" in second and "| 1 | 40 |" in second


def test_a_resumed_run_does_not_look_like_the_past(tmp_path):
    for _ in range(2):
        with SummaryWriter(tmp_path) as writer:
            TensorBoardSink(writer).incident(incident(), "opened")
    # Files of one second are read in the order of their names, of which the tenth comes before the ninth.
    first, second = sorted(read(tmp_path).Tensors("gradguard/incidents"), key=lambda event: event.wall_time)
    assert first.step < second.step


def test_several_optimizers_have_tags_of_their_own(tmp_path, writer):
    sink = TensorBoardSink(writer, optimizers=2)
    for index in range(2):
        sink.window(window(index, optimizer=index))
    sink.close()
    tags = read(tmp_path).Tags()
    assert {f"gradguard/optimizer_{i}/{name}" for i in range(2) for name in ("layers", "windows")} <= set(
        tags["tensors"]
    )
    assert "gradguard/optimizer_1/1_log10_norm_peak" in tags["scalars"]
    assert "gradguard/1_log10_norm_peak" not in tags["scalars"]


def test_a_new_list_of_layers_gets_a_new_tag(tmp_path, writer):
    sink = TensorBoardSink(writer)
    for tick, layers in enumerate([("a",), ("a", "b"), ("a", "b")]):
        sink.window(window(tick, layers=layers))
    sink.close()
    content = read(tmp_path).PluginTagToContent("gradguard_layers")
    assert json.loads(content["gradguard/layers_2"])["layers"] == ["a", "b"]
    assert len(read(tmp_path).Tensors("gradguard/layers_2")) == 2


def test_the_layout_is_laid_once_a_writer(tmp_path, writer):
    for tick in range(2):
        TensorBoardSink(writer).window(window(tick))
    writer.flush()
    assert len(read(tmp_path).Tensors("custom_scalars__config__")) == 1


def test_the_heatmap_shows_the_bad_step(tmp_path, writer):
    sink = TensorBoardSink(writer)
    for tick in range(20):
        bad = np.array([0.0, 1.0, 0.0]) if tick == 9 else np.zeros(3)
        sink.window(window(tick, layer_nonfinite=bad))
    sink.incident(incident(closed=60, helped=True), "closed")
    sink.close()
    (image,) = read(tmp_path).Images("gradguard/heatmap")
    pixels = np.array(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (image.height, image.width, 3)
    assert (pixels == special("nonfinite")).all(axis=2).any(axis=1).sum() >= 10


def test_hostile_names_stay_text(tmp_path, writer):
    sink = TensorBoardSink(writer)
    sink.window(window(layers=(HOSTILE, "b")))
    sink.incident(incident(layer=HOSTILE), "opened")
    sink.close()
    text = read(tmp_path).Tensors("gradguard/incident_log/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "<script>" not in text and "\x1b" not in text and "\n# d" not in text
    assert "a\\|\\`b\\`\\_\\*c\\*&lt;script&gt;" in text


def test_a_writer_without_a_file_raises(tmp_path):
    class Dummy:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    with pytest.raises(RuntimeError, match="no file"):
        TensorBoardSink(Dummy()).window(window())
    writer = SummaryWriter(tmp_path)
    sink = TensorBoardSink(writer)
    writer.file_writer.close()
    with pytest.raises(Exception, match="closed"):
        sink.window(window())


def test_arguments_are_checked(writer):
    with pytest.raises(ValueError, match="optimizers must be a whole number >= 1, got 0"):
        TensorBoardSink(writer, optimizers=0)


def test_the_size_on_disk_is_bounded(tmp_path):
    layers = tuple(f"blocks.{i}.mlp.fc1" for i in range(200))
    with SummaryWriter(tmp_path) as writer:
        sink = TensorBoardSink(writer, heatmap=False)
        for tick in range(40):
            sink.window(window(tick, layers=layers, layer_peaks=np.random.default_rng(tick).lognormal(size=200)))
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 150_000


def test_a_million_steps_stay_small_and_keep_their_peak(tmp_path):
    """The bound that the documentation states: the log grows with the logarithm of the run's length."""
    layers = tuple(f"l{i}" for i in range(20))
    with SummaryWriter(tmp_path) as writer:
        sink = TensorBoardSink(writer, heatmap=False)
        for tick in range(20_000):
            sink.window(window(tick, layers=layers, every=50, norm_peak=1e9 if tick == 15_000 else 1.0))
            if tick % 1000 == 0:
                sink.incident(incident(tick // 1000 + 1, step=tick * 50), "opened")
        sink.close()
    events = read(tmp_path)
    points = events.Scalars("gradguard/1_log10_norm_peak")
    assert len(points) <= 1000 and max(point.value for point in points) == 9.0
    assert points[-1].step == 999_999
    kept = events.Tensors("gradguard/layers")
    assert 1000 * (1 + math.log(20)) * 0.8 < len(kept) <= 1000 * (1 + math.log(20)) + 2000
    assert [e.step for e in kept] == [e.step for e in events.Tensors("gradguard/windows")]
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 3_500_000
