"""Random states are read without being advanced, and put back exactly."""

from __future__ import annotations

import random
import timeit

import numpy as np
import torch

from lightning_gradguard.evidence.randomness import as_they_were, from_plain, plain, put_back, read
from tests.builders import through_a_file


def draw() -> tuple[list[float], list[float], list[float]]:
    return torch.rand(3).tolist(), np.random.random(3).tolist(), [random.random() for _ in range(3)]


def test_reading_advances_nothing() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for _ in range(5):
        read()
    assert draw() == first


def test_what_was_read_is_put_back_from_a_file_too() -> None:
    draw()
    states = read()
    first = draw()
    draw()
    put_back(from_plain(through_a_file(plain(states))))
    assert draw() == first


def test_a_numpy_generator_of_another_kind_is_read_the_slow_way() -> None:
    before = np.random.get_bit_generator()  # type: ignore[attr-defined]
    try:
        np.random.set_bit_generator(np.random.PCG64(3))  # type: ignore[attr-defined]
        states = read()
        first = np.random.random(3).tolist()
        assert isinstance(states.numpy, dict)
        np.random.random(3)
        put_back(states)
        assert np.random.random(3).tolist() == first
    finally:
        np.random.set_bit_generator(before)  # type: ignore[attr-defined]


def test_those_of_now_are_left_as_they_are() -> None:
    states = read()
    first = draw()
    here = read()
    with as_they_were(states):
        assert draw() == first
    after = draw()
    put_back(here)
    assert draw() == after


def test_reading_costs_less_than_thirty_microseconds() -> None:
    took = min(timeit.repeat(read, number=200, repeat=20)) / 200
    assert took < 30e-6 * 3, f"{took * 1e6:.1f} us"  # On a machine that others use too.
