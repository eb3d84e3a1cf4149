"""Robust numbers of a few losses."""

from __future__ import annotations

import math
from array import array

import pytest

from lightning_gradguard.history.level import beginning, leaps, level, noise


def test_a_tiny_first_loss_by_luck_is_not_where_a_run_begins() -> None:
    assert beginning([0.01, 2.0, 2.1, 2.2, 2.3]) == 2.0
    assert beginning([5.0, 1.0, 1.0]) == 5.0 and math.isnan(beginning([]))


def test_one_outlier_moves_neither_level_nor_noise() -> None:
    assert level(array("d", [1.0, 1.0, 1.0, 1.0, 1e9])) == (1.0, 0.0)
    assert noise([0.954] * 4 + [1e9]) == pytest.approx(1.0) and noise([]) == 0.0


def test_a_leap_is_by_level_and_by_range() -> None:
    steady, wide = [1.0] * 16, [0.5, 1.5] * 8
    assert leaps([2.1, 2.5, 9.0], steady) and not leaps([2.0, 2.5, 9.0], steady)
    assert leaps([2.6, 2.6, 2.6], wide) and not leaps([2.4, 9.0, 9.0], wide)
    assert leaps([0.5, 0.5, 0.5], [-1.0] * 16) and not leaps([-0.5, 0.5, 0.5], [-1.0] * 16)
    assert not leaps([], steady) and not leaps([1.0], [])
