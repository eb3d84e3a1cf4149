import itertools
import math

import numpy as np
import pytest

from lightning_gradguard.diagnostics.heatmap import log_ratios
from lightning_gradguard.diagnostics.timeline import Timeline, merge
from tests.diagnostics.examples import window


def test_merging_loses_no_peak():
    first = window(0, norm_peak=1e9, coefficient=0.1, layer_peaks=np.array([5.0, math.nan, 1.0]))
    both = merge(first, window(1, layer_nonfinite=np.array([1.0, 0.0, 2.0])))
    assert (both.first_step, both.step, both.norm_peak, both.coefficient) == (0, 49, 1e9, 0.1)
    assert both.layer_peaks.tolist() == [5.0, 1.5, 2.0] and both.layer_nonfinite.tolist() == [1.0, 0.0, 2.0]
    assert math.isnan(merge(window(0, norm_peak=math.nan), window(1, norm_peak=math.inf)).norm_peak)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100, 1000])
def test_a_timeline_is_bounded_and_keeps_every_step(count):
    timeline = Timeline(limit=8)
    for tick in range(count):
        timeline.add(window(tick, norm_peak=1e6 if tick == 5 else 1.0))
    columns = timeline.columns
    assert len(columns) <= 8
    assert all(a.step + 1 == b.first_step for a, b in itertools.pairwise(columns))
    spans = {c.step - c.first_step for c in columns[:-1]}
    assert len(spans) <= 1
    assert count <= 5 or max(c.norm_peak for c in columns) == 1e6


def test_layers_that_appear_later_have_rows_of_their_own():
    timeline = Timeline()
    timeline.add(window(0, layers=("a", "b")))
    timeline.add(window(1, layers=("b", "c")))
    peaks, _ = timeline.grid()
    assert timeline.layers == ("a", "b", "c") and peaks.shape == (3, 2)
    assert math.isnan(peaks[2, 0]) and math.isnan(peaks[0, 1])


def test_a_bad_first_step_stands_out_against_the_calm_after_it():
    peaks = np.ones((2, 50))
    peaks[0, 0], peaks[1, 30] = 1e6, 100.0
    ratios = log_ratios(peaks)
    assert ratios[0, 0] == pytest.approx(6) and ratios[1, 30] == pytest.approx(2)
    assert abs(ratios).sum() == pytest.approx(8)
