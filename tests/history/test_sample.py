"""The last few values of something."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.history.sample import NORM_WINDOW, Sample

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3 * NORM_WINDOW)


@given(VALUES)
def test_only_the_newest_are_remembered_and_sorted_as_numpy_sorts(values: list[float]) -> None:
    sample = Sample()
    for value in values:
        sample.push(value)
    newest = values[-NORM_WINDOW:]
    assert list(sample.values) == newest and list(Sample(values).values) == newest
    assert [sample.quantile(q) for q in (0.0, 0.5, 1.0)] == [
        float(np.sort(newest)[round(q * (len(newest) - 1))]) for q in (0.0, 0.5, 1.0)
    ]


def test_of_nothing_nothing_is_said_and_one_value_has_no_spread() -> None:
    assert math.isnan(Sample().quantile(0.5)) and Sample([3.0]).spread == 0.0


def test_a_long_right_tail_widens_the_spread_and_a_left_one_does_not() -> None:
    even = [float(i % 10) for i in range(100)]
    tail = [100.0] * 15
    assert Sample(even + tail).spread > 5 * Sample(even).spread
    assert Sample(even + [-v for v in tail]).spread < 2 * Sample(even).spread
