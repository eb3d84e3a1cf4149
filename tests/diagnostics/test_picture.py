"""The heatmap as a picture with labels."""

import numpy as np

from lightning_gradguard.diagnostics.picture import draw, encode_png, fold, shorten
from lightning_gradguard.diagnostics.timeline import Timeline
from tests.diagnostics.examples import HOSTILE, window


def test_a_thousand_layers_are_folded_to_what_can_be_labelled():
    peaks = np.ones((1001, 3))
    peaks[777, 1] = 9.0
    labels, folded, _ = fold(tuple(f"l{i}" for i in range(1001)), peaks, np.zeros((1001, 3)))
    assert len(labels) == len(folded) <= 200 and folded.max() == 9.0


def test_the_picture_has_labels_and_survives_hostile_names():
    timeline = Timeline()
    for tick in range(5):
        timeline.add(window(tick, layers=(HOSTILE, "x" * 500, "")))
    pixels = draw(timeline)
    assert (pixels[40:, :200] < 100).any() and encode_png(pixels).startswith(b"\x89PNG")
    assert shorten("abcdefghij", 5) == "ab…ij"
