"""Colours of the heatmap."""

import math

import numpy as np

from lightning_gradguard.diagnostics.heatmap import NONFINITE, UNKNOWN_COLOUR, colours


def test_what_is_not_finite_or_not_known_has_a_colour_of_its_own():
    pixels = colours(np.array([[1.0, math.nan, 1.0, 0.0]]), np.array([[0.0, 0.0, 3.0, 0.0]]))
    assert tuple(pixels[0, 1]) == UNKNOWN_COLOUR and tuple(pixels[0, 2]) == NONFINITE and pixels[0, 0, 3] == 0
    assert colours(np.zeros((0, 0)), np.zeros((0, 0))).shape == (0, 0, 4)
