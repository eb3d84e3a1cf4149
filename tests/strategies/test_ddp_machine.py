"""What one machine does wrong is named on all processes, and a batch is left out by all of them or by none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import same
from tests.strategies.ddp_machine import BAD, EVERY, FLIPPED
from tests.strategies.launch import group

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_machine", tmp_path_factory.mktemp("ddp_machine"))


def test_ranks_that_part_are_named_within_the_interval_and_once(ranks: Ranks) -> None:
    for rank in ranks:
        [told] = rank["flipped"]["told"]
        assert "ranks 0, 1 no longer hold the same weights, and which are right cannot be told: " in told
        assert "network.0.weight" in told and rank["flipped"]["steps"] == 40


def test_a_run_that_halts_ends_on_both(ranks: Ranks) -> None:
    due = -(-FLIPPED // EVERY) * EVERY
    for rank in ranks:
        assert rank["flipped, halting"]["ended"].startswith(f"at step {due}: ranks 0, 1 no longer")


def test_the_rank_that_computed_a_step_wrongly_is_named_on_both(ranks: Ranks) -> None:
    for rank in ranks:
        [told] = rank["wrong once"]["told"]
        assert "rank 1 computed the step wrongly: the loss was " in told and "rank 0" not in told


def test_comparing_changes_nothing(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["compared"]["end"], rank["not compared"]["end"])
        assert rank["compared"]["incidents"] == []


def test_a_batch_that_one_rank_was_accused_for_is_left_out_by_both(ranks: Ranks) -> None:
    for rank in ranks:
        first, again = rank["left out"]["first"], rank["left out"]
        assert [incident["step"] for incident in first["incidents"]] == [BAD] and again["incidents"] == []
        assert same(first["end"]["weights"], again["end"]["weights"])
    assert same(*(rank["left out"]["end"]["weights"] for rank in ranks))


def test_in_another_order_both_make_every_step(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["another order"]["incidents"] == [] and rank["another order"]["steps"] == 40
    assert same(*(rank["another order"]["end"]["weights"] for rank in ranks))
