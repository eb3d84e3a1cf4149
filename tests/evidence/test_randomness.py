"""Random states are read without being advanced, and put back exactly."""

from __future__ import annotations

import random
import timeit

import numpy as np
import pytest
import torch

from lightning_gradguard.evidence import randomness
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


def test_a_normal_number_that_numpy_has_drawn_ahead_is_read_and_put_back() -> None:
    np.random.seed(4)
    read()
    for _ in range(2):  # Where the second of a pair waits, and where it was used with the key unchanged.
        np.random.standard_normal()
        states = read()
        assert isinstance(states.numpy, bytes), "the memory of numpy's state is not known here"
        first = np.random.standard_normal(5).tolist()
        put_back(from_plain(through_a_file(plain(states))))
        assert np.random.standard_normal(5).tolist() == first


def test_a_twister_that_the_user_puts_in_place_is_found_and_so_is_the_old_one() -> None:
    before = np.random.get_bit_generator()  # type: ignore[attr-defined]
    read()
    try:
        np.random.set_bit_generator(np.random.MT19937(7))  # type: ignore[attr-defined]
        for seed in (None, 11):
            if seed is not None:
                np.random.seed(seed)
            states = read()
            first = np.random.random(3).tolist()
            put_back(states)
            assert np.random.random(3).tolist() == first
    finally:
        np.random.set_bit_generator(before)  # type: ignore[attr-defined]
    states = read()
    first = draw()
    put_back(states)
    assert draw() == first


@pytest.mark.parametrize("missing", ["numpy", "python"])
def test_where_memory_is_laid_out_in_another_way_the_getters_are_asked(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = randomness._Memory()
    memory._looked = missing == "python"
    monkeypatch.setattr(randomness, "_WHERE", memory)
    monkeypatch.setattr(randomness, "_where_drawn_ahead", lambda: None)
    np.random.standard_normal()
    states = read()
    first = draw()
    assert isinstance(states.numpy, dict) and (missing == "numpy") == isinstance(states.python, bytes)
    draw()
    put_back(from_plain(through_a_file(plain(states))))
    assert draw() == first


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
