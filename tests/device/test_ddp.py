"""Several GPUs: no rank decides anything by what it alone has seen, so all make the same collectives."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradguard.statistics.collectives import Collectives, Own
from tests.builders import same
from tests.strategies.ddp_all_late import SCENARIOS as EVERY
from tests.strategies.ddp_on_a_device import SCENARIOS
from tests.strategies.launch import group

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_on_a_device", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_ranks_make_the_same_sequence_of_collectives(ranks: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["left"] == second["left"] >= 25
    assert first["collectives"] == second["collectives"] != []
    assert first["incidents"] == second["incidents"]
    assert same(first["end"], second["end"])


@pytest.mark.parametrize("name", ["NaN", "a large batch"])
def test_a_bad_batch_of_one_rank_is_skipped_and_named_by_both(ranks: Ranks, name: str) -> None:
    for rank in ranks:
        (incident,) = rank[name]["incidents"]
        assert incident["blame"][0]["layer"] == "batch"
        assert all(value.isfinite().all() for value in rank[name]["end"]["weights"].values())


@pytest.fixture(scope="module")
def all_late(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_all_late", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", EVERY)
def test_each_scenario_of_ddp_keeps_the_ranks_together_on_a_device_too(all_late: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in all_late)
    assert first["left"] == second["left"]
    assert first["collectives"] == second["collectives"] and all(first["collectives"])
    assert first["incidents"] == second["incidents"]


def test_what_only_this_process_knows_is_no_ground_for_a_decision() -> None:
    own = Own("the batch holds NaN")
    with pytest.raises(TypeError, match="no ground"):
        _ = own and True
    assert own.known(Collectives(size=2)) is None
    assert own.known(Collectives()) == "the batch holds NaN"
