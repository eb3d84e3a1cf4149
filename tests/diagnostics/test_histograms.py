"""Histograms of log10 |gradient|, counted where the gradients are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.diagnostics import TensorBoardSink, histograms
from tests.builders import Net, loader, mlp, regression, trainer


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=50),
    st.sampled_from([1.0, 2.0**16]),
)
def test_counts_are_those_of_numpy(values: list[float], scale: float) -> None:
    logs = np.log10(np.abs(np.array([v for v in values if v], dtype=np.float32)) / np.float32(scale))
    # What lies on an edge, up to float32's last digit, may be counted on either side.
    clear = not any(abs(log * 4 - round(log * 4)) < 1e-4 for log in logs.tolist())
    (counted,) = histograms.count([torch.tensor(values)], scale)
    assert counted.sum() == np.count_nonzero(logs > -46)
    if clear:
        assert counted.tolist() == np.histogram(logs, histograms.EDGES)[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zeros_and_broken_values_are_in_no_bin(dtype: torch.dtype) -> None:
    grad = torch.tensor([0.0, math.nan, math.inf, -math.inf, -0.5, 3.0], dtype=dtype)
    counted = histograms.count([grad, torch.zeros(0, dtype=dtype), torch.zeros(3, 2, dtype=dtype)])
    assert counted.sum(axis=1).tolist() == [2, 0, 0]
    assert histograms.fields(counted[1]) is None
    assert grad[4] == -0.5, "the gradient itself is left alone"


def test_sparse_and_complex_gradients_are_counted() -> None:
    sparse = torch.sparse_coo_tensor([[1, 1]], [2.0, 3.0], (4,))
    found = histograms.count([sparse, torch.tensor([1 + 10j])])
    assert found.sum(axis=1).tolist() == [1, 2]


def test_large_tensors_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_COUNTED_AT_ONCE", 7)
    grad = torch.logspace(-8, 8, 100)
    pieces = histograms.count([grad])
    monkeypatch.undo()
    assert np.array_equal(pieces, histograms.count([grad])) and pieces.sum() == 100


def histogram(directory: Path, tag: str) -> list:
    events = EventAccumulator(str(directory), size_guidance={"histograms": 0})
    events.Reload()
    return events.Histograms(tag) if tag in events.Tags()["histograms"] else []


def test_a_histogram_comes_back_with_its_shape(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        sink = TensorBoardSink(writer, histograms=True)
        names, grads = (
            ["a.weight", "a.bias", "b.weight"],
            [torch.full((10,), 1e-3), torch.full((2,), 1e-7), torch.ones(4)],
        )
        sink.gradients(7, 0, names, grads, 1.0)
    (event,) = histogram(tmp_path, "gradguard_log10_gradient/a")
    value = event.histogram_value
    assert event.step == 7 and value.num == 12 and sum(value.bucket) == 12
    share = {limit: count for limit, count in zip(value.bucket_limit, value.bucket, strict=True) if count}
    assert list(share.values()) == [2, 10] and all(
        abs(edge - at) <= 0.25 for edge, at in zip(share, (-7, -3), strict=True)
    )
    assert value.min <= -7 <= -3 <= value.max


@pytest.mark.parametrize("wanted", [False, True])
def test_the_callback_writes_them_only_where_they_are_asked_for(tmp_path: Path, wanted: bool) -> None:
    logger = TensorBoardLogger(str(tmp_path))
    guard = GradGuard(log_every=5, histograms=wanted)
    trainer(tmp_path, logger=logger, callbacks=[guard]).fit(Net(mlp(), torch.optim.Adam), loader(regression(12)))
    found = histogram(Path(logger.log_dir), "gradguard_log10_gradient/network.0")
    assert [event.step for event in found] == ([0, 5, 10] if wanted else [])


def test_they_change_nothing(tmp_path: Path) -> None:
    ends = []
    for wanted in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with SummaryWriter(tmp_path / str(wanted)) as writer:
            guard = Guard(model, sinks=[TensorBoardSink(writer, histograms=wanted)], log_every=2)
            for x, y in regression(10):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                guard.before_step(optimizer)
                optimizer.step()
            guard.close()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
