"""Samples at fault are found by halving the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradguard.replay import samples


@pytest.mark.parametrize("bad", [(0,), (7,), (2, 5), (0, 1, 6), ()])
def test_guilty_samples_are_found_one_by_one(bad: tuple[int, ...]) -> None:
    asked: list[int] = []

    def fails(rows: Any) -> bool:
        asked.append(1)
        return bool(set(rows) & set(bad))

    found = samples.guilty(range(8), fails)
    assert found == (bad or tuple(range(8)))
    assert len(asked) <= 16


def test_samples_that_fail_only_together_are_named_together() -> None:
    assert samples.guilty(range(8), lambda rows: {2, 3} <= set(rows)) == (2, 3)
    assert samples.guilty(range(8), lambda rows: {0, 7} <= set(rows)) == tuple(range(8))


def test_the_search_ends() -> None:
    assert samples.guilty(range(1000), lambda rows: True, most=10)


def test_samples_of_another_batch_stand_in_at_the_same_places() -> None:
    batch = {"x": torch.arange(4.0), "y": torch.arange(4), "scale": 2.0}
    other = {"x": torch.tensor([-1.0, -2.0]), "y": torch.tensor([8, 9]), "scale": 2.0}
    assert samples.can_mix(batch, other)
    found = samples.mixed(batch, other, [1], range(4))
    assert found["x"].tolist() == [-1.0, 1.0, -1.0, -2.0] and found["y"].tolist() == [8, 1, 8, 9]
    assert samples.take(batch, [1, 3])["x"].tolist() == [1.0, 3.0]
    assert not samples.can_mix(batch, {"x": torch.ones(2, 3), "y": torch.ones(2), "scale": 1.0})
    assert samples.count(7) is None and samples.count(batch) == 4
