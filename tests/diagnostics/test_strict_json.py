"""Lines that every reader of JSON takes."""

from __future__ import annotations

import json
import math

import numpy as np

from lightning_gradguard.diagnostics.strict_json import dumps


def test_what_is_not_finite_is_a_word_and_never_a_bare_nan() -> None:
    line = dumps({"a": [math.nan, {"b": -math.inf}], "c": 1.5, "d": "two\nlines"})
    assert "\n" not in line
    told = json.loads(line, parse_constant=lambda name: 1 / 0)
    assert told["c"] == 1.5 and told["a"][0] == "nan" and told["a"][1]["b"] == "-inf"


def test_numpys_scalars_are_numbers() -> None:
    assert json.loads(dumps({"a": np.float32(0.5), "b": np.int64(3)})) == {"a": 0.5, "b": 3}
