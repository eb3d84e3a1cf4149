"""Window peaks and counts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.diagnostics.window import WindowAccumulator
from lightning_gradguard.records import GradientStatistics, Window
from lightning_gradguard.statistics.norms import global_norm
from tests.builders import same, through_a_file

NAMES = ("net.0.weight", "net.0.bias", "net.1.weight", "scale")


def seen(step: int, norms: Any, names: tuple[str, ...] = NAMES) -> GradientStatistics:
    values = np.array(norms, dtype=np.float64)
    return GradientStatistics(step, names, values, global_norm(values))


def close(accumulator: WindowAccumulator, last: GradientStatistics) -> Window:
    return accumulator.window(
        last, typical=math.nan, optimizer=0, limit=math.inf, coefficient=1.0, lr_factor=1.0, incidents=0
    )


def test_a_window_keeps_every_layers_peak() -> None:
    accumulator = WindowAccumulator()
    accumulator.add(seen(5, [3.0, 0.0, 1.0, 1.0]))
    accumulator.add(last := seen(6, [0.0, 4.0, 9.0, 0.0]))
    window = close(accumulator, last)
    assert window.layers == ("net.0", "net.1", "scale")
    assert window.layer_peaks == pytest.approx([5.0, 9.0, 1.0])
    assert (window.first_step, window.step, window.tick) == (5, 6, 0)
    assert window.norm_peak == pytest.approx(math.hypot(4.0, 9.0))


def test_broken_norms_are_counted_and_keep_out_of_the_peaks() -> None:
    accumulator = WindowAccumulator()
    accumulator.add(seen(0, [math.nan, 2.0, 1.0, 1.0]))
    accumulator.add(seen(1, [math.inf, 1.0, 1.0, 1.0]))
    accumulator.add(last := seen(2, [1.0] * 4))
    window = close(accumulator, last)
    assert window.layer_nonfinite.tolist() == [2.0, 0.0, 0.0]
    assert window.layer_peaks == pytest.approx([math.hypot(1.0, 2.0), 1.0, 1.0])
    assert math.isnan(window.norm_peak)


def test_the_next_window_begins_afresh_but_counts_go_on() -> None:
    accumulator = WindowAccumulator()
    accumulator.add(seen(0, [100.0] * 4), 0.5)
    accumulator.add(last := seen(1, [1.0] * 4), 0.0)
    first = close(accumulator, last)
    assert (first.clipped, first.skipped, first.coefficient) == (1, 1, 0.0)
    accumulator.add(last := seen(2, [1.0] * 4))
    second = close(accumulator, last)
    assert (second.clipped, second.skipped, second.coefficient, second.tick) == (1, 1, 1.0, 1)
    assert second.layer_peaks.max() < 2.0 and second.first_step == 2


def test_parameters_that_come_and_go_do_not_cost_the_window() -> None:
    accumulator = WindowAccumulator()
    for step in range(10):
        names = NAMES[:2] if step % 2 else NAMES[2:]
        accumulator.add(last := seen(step, [1.0 + step] * 2, names))
    assert accumulator.steps == 10
    window = close(accumulator, last)
    assert dict(zip(window.layers, window.layer_peaks, strict=True)) == pytest.approx(
        {"net.1": 9.0, "scale": 9.0, "net.0": math.hypot(10.0, 10.0)}
    )


@given(st.lists(st.lists(st.floats(0, 1e30), min_size=4, max_size=4), min_size=1, max_size=30), st.integers(0, 30))
def test_state_round_trips_in_the_middle_of_a_window(steps: list[list[float]], cut: int) -> None:
    whole, first, second = WindowAccumulator(), WindowAccumulator(), WindowAccumulator()
    for step, norms in enumerate(steps):
        whole.add(seen(step, norms))
        if step < cut:
            first.add(seen(step, norms))
    second.load_state_dict(through_a_file(first.state_dict()))
    for step, norms in enumerate(steps[cut:], cut):
        second.add(seen(step, norms))
    assert same(whole.state_dict(), second.state_dict())


def test_the_overflow_that_a_scaler_expects_is_counted_and_leaves_no_trace() -> None:
    accumulator = WindowAccumulator()
    overflow = dataclasses.replace(seen(1, [math.inf, 1.0, 1.0, 1.0]), scaled=True)
    accumulator.add(seen(0, [1.0] * 4))
    accumulator.add(overflow)
    window = close(accumulator, overflow)
    assert window.overflows == 1 and window.norm_peak == pytest.approx(2.0) and not window.layer_nonfinite.any()
    assert (window.norm_before, window.norm_after, window.skipped) == (0.0, 0.0, 0)
    accumulator.add(overflow)
    assert close(accumulator, overflow).norm_peak == 0.0
    # One that keeps coming raises the alarm; what was skipped then is trouble, and counts as such.
    accumulator.add(overflow, 0.0, alarm=True)
    assert (alarmed := close(accumulator, overflow)).overflows == 2
    assert alarmed.skipped == 1 and math.isinf(alarmed.norm_peak)


def test_a_window_tells_how_large_weights_are_and_how_far_an_update_moves_them() -> None:
    weight = torch.nn.Parameter(torch.full((8, 8), 2.0))
    accumulator, windows = WindowAccumulator(), []
    for step in range(6):
        accumulator.weigh({"net.0.weight": weight})
        accumulator.add(last := seen(step, [1.0, 1.0, 1.0, 1.0]))
        if step != 4:  # the first windows have one step each
            windows.append(close(accumulator, last))
        with torch.no_grad():
            weight.mul_(1.5)
    ratios = [window.layer_updates[0] for window in windows]
    assert ratios == pytest.approx([math.nan, 0.5, math.nan, 0.5, 0.5], nan_ok=True), (
        "of every other step: it takes two looks"
    )
    assert windows[1].layer_weights[0] == pytest.approx(16.0) and np.isnan(windows[1].layer_weights[1:]).all()
