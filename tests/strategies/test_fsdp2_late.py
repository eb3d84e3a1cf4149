"""FSDP2 on an accelerator: steps of a calm run are left to it, and what a checkpoint holds of an incident is whole."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradguard.statistics.norms import can_sum_over_shards
from tests.builders import same
from tests.strategies.fsdp_on_a_device import AT, SCENARIOS
from tests.strategies.launch import group
from tests.strategies.test_ddp import actions

pytestmark = pytest.mark.skipif(not can_sum_over_shards(), reason="DTensor became public with torch 2.5")
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("fsdp_on_a_device", tmp_path_factory.mktemp("fsdp"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_end_alike(ranks: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert same(first["weights"], second["weights"]) and first["incidents"] == second["incidents"]
    assert all(value.isfinite().all() for value in first["weights"].values())
    if "collectives" in first:
        assert first["collectives"] == second["collectives"] != []


@pytest.mark.parametrize("kind", ["Adam", "fused"])
def test_a_calm_run_is_left_to_the_device_and_is_bit_identical(ranks: Ranks, kind: str) -> None:
    plain, guarded = (ranks[0][f"{way} {kind}"] for way in ("plain", "guarded"))
    assert guarded["left"] >= 30 and guarded["incidents"] == []
    assert same(plain["weights"], guarded["weights"]) and same(plain["optimizer"], guarded["optimizer"])


@pytest.mark.parametrize("kind", ["Adam", "fused"])
def test_a_calm_step_costs_one_small_reduction(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        counted = rank[f"guarded {kind}"]["counted"][40:]
        assert min(counted) == 1 and counted.count(1) >= 0.7 * len(counted)


def test_a_bad_batch_of_one_rank_is_skipped_by_the_devices_of_both(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["NaN"]) == [(AT, "non-finite", ["skip"])]
        details = [o["detail"] for i in rank["NaN"]["incidents"] for a in i["actions"] for o in a["outcomes"]]
        assert "on the device" in details[0]
        assert next(step for step, _, _ in actions(rank["a large batch"])) == AT


@pytest.mark.parametrize("name", ["resumed", "resumed, exactly"])
def test_a_checkpoint_in_an_incident_carries_the_last_good_snapshot_whole(ranks: Ranks, name: str) -> None:
    for rank in ranks:
        found = rank[name]
        assert found["open"]
        shapes = {key: value.shape for key, value in found["weights"].items()}
        assert found["kept"] and all({k: v.shape for k, v in one.items()} == shapes for one in found["kept"])
        assert {action[0] for action in actions(found)} == {action[0] for action in actions(found["whole"])}


def test_a_resume_in_an_incident_is_exact_when_asked_for(ranks: Ranks) -> None:
    found = ranks[0]["resumed, exactly"]
    assert same(found["weights"], found["whole"]["weights"]) and same(found["optimizer"], found["whole"]["optimizer"])
    assert found["incidents"] == found["whole"]["incidents"]
