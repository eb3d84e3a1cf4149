"""Colours of the heatmap."""

import math

import numpy as np

from lightning_gradguard.diagnostics.heatmap import colours
from lightning_gradguard_tensorboard.colours import ratios, special


def test_the_colours_are_those_of_the_tab():
    peaks = np.array([[1.0, math.nan, 1.0, 0.0, 100.0, 1.0, 1.0]])
    pixels = colours(peaks, np.array([[0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0]]))
    assert [tuple(pixels[0, c]) for c in (1, 2, 3)] == [special("silent"), special("nonfinite"), special("silent")]
    assert pixels[0, [0, 4]].tolist() == ratios(np.array([0.0, np.log2(100.0)])).tolist()
    assert colours(np.zeros((0, 0)), np.zeros((0, 0))).shape == (0, 0, 3)
