"""Snapshots of processes that share a host's memory: all take the same way, also where one of them lacks some."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import same
from tests.strategies.ddp_memory import SAVED, SCENARIOS
from tests.strategies.launch import group

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_memory", tmp_path_factory.mktemp("ddp"))


def went_back(found: dict[str, Any]) -> set[int]:
    outcomes = [o for i in found["incidents"] for action in i["actions"] for o in action["outcomes"]]
    return {o["back_to"] for o in outcomes if o["remedy"] == "rollback" and o["applied"]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_ranks_take_the_same_way_and_make_the_same_collectives(ranks: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["collectives"] == second["collectives"] != []
    assert first["keeping"] == second["keeping"]
    assert first["incidents"] == second["incidents"] != []
    assert same(first["end"], second["end"])
    assert all(value.isfinite().all() for value in first["end"]["weights"].values())


def test_one_copy_in_memory_that_both_see_does_what_two_on_each_rank_do(ranks: Ranks) -> None:
    for rank in ranks:
        whole, one = rank["all"], rank["one copy for both"]
        assert (whole["keeping"], one["keeping"]) == ("ALL", "NODE")
        assert one["shared"] and not whole["shared"]
        assert went_back(one) == went_back(whole) != set()
        assert same(one["end"], whole["end"])
        assert any("one is kept for all processes of this host" in told for told in one["told"])


def test_the_rank_that_lacks_memory_decides_for_both(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["one lacks memory"]["keeping"] == "DISK"


def test_without_memory_a_rollback_goes_back_to_the_last_checkpoint(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["on disk"]["keeping"] == "DISK"
        assert went_back(rank["on disk"]) == {SAVED}
        assert went_back(rank["on disk, nothing saved"]) == set()


def test_without_memory_for_the_copy_before_a_treatment_nobody_has_one_and_it_is_said(ranks: Ranks) -> None:
    assert all(rank["all"]["untreated"] for rank in ranks)
    name = "no memory before a treatment"
    assert not any(rank[name]["untreated"] for rank in ranks)
    told = [line for line in ranks[0][name]["told"] if "if the treatment does not help, its weights stay" in line]
    assert len(told) == 1 and "on another process" in told[0]
